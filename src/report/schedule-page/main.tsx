/** Where the page of a schedule starts: reads its data out of the document, then draws. */
import { render } from 'preact';
import '../page/palette.css';
import { readData } from '../page/read-data.js';
import { App } from './app.js';
import type { SchedulePageData } from './data.js';
import './style.css';

async function start(): Promise<void> {
  const data = document.getElementById('run');
  const page = document.getElementById('page');
  if (data === null || page === null) return;
  render(<App data={(await readData(data)) as SchedulePageData} />, page);
}

void start();
