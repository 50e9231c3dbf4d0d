/** Where the page starts: reads its data out of the document, then draws. */
import { render } from 'preact';
import 'uplot/dist/uPlot.min.css';
import { App } from './app.js';
import type { PageRun } from './data.js';
import './palette.css';
import { readData } from './read-data.js';
import './style.css';

async function start(): Promise<void> {
  const data = document.getElementById('run');
  const page = document.getElementById('page');
  if (data === null || page === null) return;
  render(<App run={(await readData(data)) as PageRun} />, page);
}

void start();
