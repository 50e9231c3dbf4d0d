/**
 * A page as one HTML document that needs nothing else: opened from a disk, mailed, kept with a build.
 *
 * Nothing of its data can become markup: it is JSON in an element that is never read as HTML, with every `<` escaped, or gzip in base64
 * where that is shorter. A content security policy forbids the page to load or send anything.
 */
import { gzipSync } from 'node:zlib';
import { escapeXml } from './junit.js';

/** JSON longer than this is compressed. */
const PLAIN_LIMIT = 1 << 16;

const POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/** What a document is made of. `withoutScript` is markup. */
export interface PageDocument {
  readonly title: string;
  readonly data: unknown;
  readonly style: string;
  readonly script: string;
  readonly withoutScript: string;
}

function dataElement(data: unknown): string {
  const json = JSON.stringify(data).replaceAll('<', '\\u003c');
  if (json.length <= PLAIN_LIMIT) return `<script id="run" type="application/json">${json}</script>`;
  return `<script id="run" type="application/gzip">${gzipSync(json).toString('base64')}</script>`;
}

/** The document as text. */
export function pageDocument({ title, data, style, script, withoutScript }: PageDocument): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta name="viewport" content="width=device-width"><title>${escapeXml(title)}</title>
<style>${style}</style></head>
<body><div id="page"></div><noscript>${withoutScript}</noscript>
${dataElement(data)}
<script>${script}</script></body></html>
`;
}
