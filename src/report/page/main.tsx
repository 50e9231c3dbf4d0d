/**
 * Where the page starts: reads its data out of the document, then draws.
 *
 * The data is an element of the document: JSON as text, or gzip in base64 when that is shorter.
 */
import { render } from 'preact';
import 'uplot/dist/uPlot.min.css';
import { App } from './app.js';
import type { PageRun } from './data.js';
import './style.css';

async function readData(element: HTMLElement): Promise<PageRun> {
  const text = element.textContent;
  if (element.getAttribute('type') === 'application/json') return JSON.parse(text) as PageRun;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return (await new Response(unpacked).json()) as PageRun;
}

async function start(): Promise<void> {
  const data = document.getElementById('run');
  const page = document.getElementById('page');
  if (data === null || page === null) return;
  render(<App run={await readData(data)} />, page);
}

void start();
