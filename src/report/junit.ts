/** A finished run as JUnit XML: one test case a scenario, its failed checks as failures (domain.md IF-26). */
import { checkDetail, countVerdict, type FinishedRun, type FinishedScenario } from './summary.js';

/** Text as XML content or attribute value; characters XML cannot hold are replaced. */
export function escapeXml(text: string): string {
  return text

    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, '\ufffd')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

function testCase({ outcome, wallMs }: FinishedScenario): string {
  const classname = outcome.file.replace(/\.[^./]+$/, '').replaceAll('/', '.');
  const head = `  <testcase classname="${escapeXml(classname)}" name="${escapeXml(outcome.name)}" time="${(wallMs / 1000).toFixed(3)}"`;
  const bad = outcome.checks.filter((check) => check.verdict !== 'pass');
  if (bad.length === 0) return `${head}/>\n`;
  const children = bad.map((check) => {
    const message = escapeXml(checkDetail(outcome, check));
    return check.verdict === 'fail'
      ? `    <failure message="${escapeXml(check.name)}">${message}</failure>\n`
      : `    <skipped message="${escapeXml(check.name)}: ${message}"/>\n`;
  });
  return `${head}>\n${children.join('')}  </testcase>\n`;
}

/** The JUnit document. */
export function junitXml(run: FinishedRun): string {
  const seconds = run.scenarios.reduce((sum, { wallMs }) => sum + wallMs, 0) / 1000;
  const counts = [
    `tests="${run.scenarios.length}"`,
    `failures="${countVerdict(run, 'fail')}"`,
    'errors="0"',
    `skipped="${countVerdict(run, 'inconclusive')}"`,
    `time="${seconds.toFixed(3)}"`,
  ].join(' ');
  const cases = run.scenarios.map(testCase).join('');
  return `<?xml version="1.0" encoding="UTF-8"?>\n<testsuite name="iovaduct" ${counts}>\n${cases}</testsuite>\n`;
}
