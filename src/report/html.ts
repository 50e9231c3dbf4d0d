/**
 * A finished run as one HTML file that needs nothing else: opened from a disk, mailed, kept with a build.
 *
 * The page itself (`page/`) is bundled when the project is built; here the run's data (`model.ts`) is put beside it. Nothing of
 * a run can become markup: data is JSON in an element that is never read as HTML, with every `<` escaped, or gzip in base64
 * where that is shorter. A content security policy forbids the page to load or send anything. Who has no script still gets the
 * totals and the checks that failed.
 */
import { gzipSync } from 'node:zlib';
import type { PageRun } from './page/data.js';
import { pageScript, pageStyle } from './page.generated.js';
import { escapeXml } from './junit.js';
import { pageRun } from './model.js';
import type { FinishedRun } from './summary.js';

/** JSON longer than this is compressed. */
const PLAIN_LIMIT = 1 << 16;

const POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

function dataElement(data: PageRun): string {
  const json = JSON.stringify(data).replaceAll('<', '\\u003c');
  if (json.length <= PLAIN_LIMIT) return `<script id="run" type="application/json">${json}</script>`;
  return `<script id="run" type="application/gzip">${gzipSync(json).toString('base64')}</script>`;
}

function withoutScript(data: PageRun): string {
  const failed = data.scenarios.flatMap(({ file, checks }) =>
    checks
      .filter(({ verdict }) => verdict !== 'pass')
      .map(({ name, verdict, detail, line }) => `${verdict}: ${file}:${line ?? 1}: ${name}: ${detail}`),
  );
  const rows = failed.map((text) => `<li>${escapeXml(text)}</li>`).join('');
  return `<noscript><h1>iovaduct report</h1><p>${escapeXml(data.totals)}</p><ul>${rows}</ul></noscript>`;
}

/** The report as one HTML document. */
export function htmlReport(run: FinishedRun): string {
  const data = pageRun(run);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta name="viewport" content="width=device-width"><title>iovaduct report: ${escapeXml(data.totals)}</title>
<style>${pageStyle}</style></head>
<body><div id="page"></div>${withoutScript(data)}
${dataElement(data)}
<script>${pageScript}</script></body></html>
`;
}
