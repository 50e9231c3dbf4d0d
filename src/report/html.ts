/** A finished run as one HTML file. Who has no script still gets the totals and the checks that failed. */
import { pageDocument } from './document.js';
import { escapeXml } from './junit.js';
import { pageRun } from './model.js';
import type { PageRun } from './page/data.js';
import { pageScript, pageStyle } from './page.generated.js';
import type { FinishedRun } from './summary.js';

function withoutScript(data: PageRun): string {
  const failed = data.scenarios.flatMap(({ file, checks }) =>
    checks
      .filter(({ verdict }) => verdict !== 'pass')
      .map(({ name, verdict, detail, line }) => `${verdict}: ${file}:${line ?? 1}: ${name}: ${detail}`),
  );
  const rows = failed.map((text) => `<li>${escapeXml(text)}</li>`).join('');
  return `<h1>iovaduct report</h1><p>${escapeXml(data.totals)}</p><ul>${rows}</ul>`;
}

/** The report as one HTML document. */
export function htmlReport(run: FinishedRun): string {
  const data = pageRun(run);
  return pageDocument({
    title: `iovaduct report: ${data.totals}`,
    data,
    style: pageStyle,
    script: pageScript,
    withoutScript: withoutScript(data),
  });
}
