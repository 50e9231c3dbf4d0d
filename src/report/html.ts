/**
 * A finished run as one HTML file without external resources.
 *
 * For each scenario: the guest's RAM drawn against every host's reserved regions on a common address axis, the steps with
 * their virtual times, the checks, and where transactions ended. Kinds of regions differ by colour (the Okabe-Ito palette)
 * and by pattern and are named in text; every drawing has the same facts in a table below it. Everything that opens is a
 * `<details>`, so the keyboard reaches all of it.
 */
import type { ScenarioOutcome } from '../scenario/execute.js';
import { conflictText, endText, rangeText } from '../scenario/results.js';
import { durationText, hexText } from '../scenario/units.js';
import { escapeXml } from './junit.js';
import { checkDetail, runDigest, type FinishedRun } from './summary.js';
import { headline, totalsLine } from './terminal.js';

interface Span {
  readonly start: bigint;
  readonly last: bigint;
  readonly label: string;
  readonly kind: string;
}

interface Lane {
  readonly title: string;
  readonly spans: readonly Span[];
}

/** Fill of a kind: colour of the Okabe-Ito palette, and a pattern that tells it apart without colour. */
const FILLS: Readonly<Record<string, string>> = {
  ram: '#56b4e9',
  msi: 'url(#p-msi)',
  'software-msi': 'url(#p-software-msi)',
  reserved: 'url(#p-reserved)',
  direct: 'url(#p-direct)',
  'direct-relaxable': 'url(#p-direct-relaxable)',
  aperture: 'url(#p-reserved)',
  window: 'url(#p-window)',
  'dma-range': '#f0e442',
  doorbell: 'url(#p-msi)',
  abort: 'url(#p-reserved)',
};

const PATTERNS = [
  ['msi', '#d55e00', 'M0 0L8 8M-2 6L2 10M6 -2L10 2'],
  ['software-msi', '#e69f00', 'M8 0L0 8M10 6L6 10M2 -2L-2 2'],
  ['reserved', '#000000', 'M0 4H8'],
  ['direct', '#cc79a7', 'M4 0V8'],
  ['direct-relaxable', '#009e73', 'M4 4h.01'],
  ['window', '#0072b2', 'M0 0L8 8M8 0L0 8'],
]
  .map(
    ([id = '', colour = '', path = '']) =>
      `<pattern id="p-${id}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="${colour}" fill-opacity=".35"/><path d="${path}" stroke="${colour}" stroke-width="2" stroke-linecap="round"/></pattern>`,
  )
  .join('');

/** Pixels of the address axis, of one lane, and beside them. */
const LANE_HEIGHT = 34;
const LEFT = 150;
const AXIS_WIDTH = 900;

/** Maps addresses to pixels: between neighbouring edges the width grows with the logarithm of the distance. */
function axis(lanes: readonly Lane[]): { readonly x: (address: bigint) => number; readonly edges: readonly bigint[] } {
  const found = new Set<bigint>();
  for (const lane of lanes) for (const span of lane.spans) found.add(span.start).add(span.last + 1n);
  const edges = [...found].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  const places = new Map<bigint, number>();
  let at = 0;
  edges.forEach((edge, index) => {
    const before = edges[index - 1];
    if (before !== undefined) at += Math.max(Math.log2(Number(edge - before)) - 8, 3);
    places.set(edge, at);
  });
  const scale = at === 0 ? 1 : AXIS_WIDTH / at;
  return { x: (address) => LEFT + (places.get(address) ?? 0) * scale, edges };
}

function lanesOf(outcome: ScenarioOutcome): Lane[] {
  const guests = outcome.guests.map((guest) => ({
    title: `${guest.name} (${guest.machine})`,
    spans: guest.ram.map((block) => ({ start: block.start, last: block.last, label: block.name, kind: 'ram' })),
  }));
  const hosts = outcome.hosts.map((host) => {
    const regions = host.reservedRegions.map((region) => ({
      start: region.start,
      last: region.last,
      label: `${region.owner}${region.devices === undefined ? '' : ` (${region.devices.join(', ')})`}`,
      kind: region.type,
    }));
    const beyond = { start: 1n << BigInt(host.apertureBits), last: (1n << 64n) - 1n };
    const aperture = host.apertureBits < 48 ? [{ ...beyond, label: 'beyond the aperture', kind: 'aperture' }] : [];
    return { title: `host ${host.name}`, spans: [...regions, ...aperture] };
  });
  return [...guests, ...hosts].filter((lane) => lane.spans.length > 0);
}

function drawing(outcome: ScenarioOutcome): string {
  const lanes = lanesOf(outcome);
  if (lanes.length === 0) return '';
  const { x } = axis(lanes);
  const height = lanes.length * LANE_HEIGHT + 4;
  const rows = lanes.map((lane, index) => {
    const y = index * LANE_HEIGHT + 4;
    const boxes = lane.spans.map((span) => {
      const from = x(span.start);
      const width = Math.max(x(span.last + 1n) - from, 2);
      const name = escapeXml(`${rangeText(span)} ${span.kind}: ${span.label}`);
      return `<rect x="${from.toFixed(1)}" y="${y}" width="${width.toFixed(1)}" height="${LANE_HEIGHT - 10}" fill="${FILLS[span.kind] ?? '#999'}" stroke="#333" stroke-width=".5"><title>${name}</title></rect>`;
    });
    return `<text x="0" y="${y + 16}">${escapeXml(lane.title.slice(0, 24))}</text>${boxes.join('')}`;
  });
  const facts = lanes.flatMap((lane) =>
    lane.spans.map(
      (span) =>
        `<tr><td>${escapeXml(lane.title)}</td><td><code>${rangeText(span)}</code></td><td>${span.kind}</td><td>${escapeXml(span.label)}</td></tr>`,
    ),
  );
  return `<figure><svg role="img" aria-label="Guest RAM against reserved regions; the table below has the same facts" viewBox="0 0 ${LEFT + AXIS_WIDTH + 10} ${height}">${rows.join('')}</svg>
<details><summary>Ranges as a table</summary><table><tr><th>Where</th><th>Range</th><th>Kind</th><th>What</th></tr>${facts.join('')}</table></details></figure>`;
}

function stepTable(outcome: ScenarioOutcome): string {
  const rows = outcome.steps.map(({ kind, at, startNs, endNs, result }) => {
    const conflicts = (result.conflicts ?? []).map((c) => `<br><code>${escapeXml(conflictText(c))}</code>`).join('');
    const way = result.explanation === undefined ? '' : `<br><em>${escapeXml(result.explanation)}</em>`;
    return `<tr><td>${at.line}</td><td>${kind}</td><td>${durationText(startNs)}</td><td>${durationText(endNs - startNs)}</td><td>${result.verdict}</td><td>${escapeXml(result.text)}${conflicts}${way}</td></tr>`;
  });
  return `<table><tr><th>Line</th><th>Step</th><th>At</th><th>Took</th><th>Verdict</th><th>What</th></tr>${rows.join('')}</table>`;
}

function checkTable(outcome: ScenarioOutcome): string {
  const rows = outcome.checks.map(
    (check) =>
      `<tr class="${check.verdict}"><td>${check.verdict}</td><td>${escapeXml(check.name)}</td><td>${escapeXml(checkDetail(outcome, check))}</td></tr>`,
  );
  return `<table><tr><th>Verdict</th><th>Check</th><th>Detail</th></tr>${rows.join('')}</table>`;
}

/** Transactions shown for one host. */
const SHOWN_TRANSACTIONS = 200;

function transactionTables(outcome: ScenarioOutcome): string {
  return outcome.transactions
    .filter(({ records }) => records.length > 0)
    .map(({ host, records }) => {
      const rows = records
        .slice(0, SHOWN_TRANSACTIONS)
        .map(
          (record) =>
            `<tr><td>${durationText(record.timeNs)}</td><td>${escapeXml(record.device)}</td><td>${record.direction}</td><td><code>${hexText(record.iova)}</code></td><td>${record.lengthBytes}</td><td>${record.ends.map((end) => escapeXml(endText(end))).join('<br>')}</td></tr>`,
        );
      const more = records.length > SHOWN_TRANSACTIONS ? `, the first ${SHOWN_TRANSACTIONS}` : '';
      return `<details><summary>${records.length} transactions on host ${escapeXml(host)}${more}</summary><table><tr><th>At</th><th>Device</th><th>Direction</th><th>IOVA</th><th>Bytes</th><th>Ended in</th></tr>${rows.join('')}</table></details>`;
    })
    .join('');
}

function section(outcome: ScenarioOutcome): string {
  const open = outcome.verdict === 'pass' ? '' : ' open';
  const covers = outcome.covers.length === 0 ? '' : `<p>Covers ${escapeXml(outcome.covers.join(', '))}</p>`;
  return `<details class="scenario ${outcome.verdict}"${open}><summary><b>${outcome.verdict}</b> ${escapeXml(outcome.name)}: ${escapeXml(outcome.title)}</summary>
<p>${escapeXml(headline(outcome))}</p>${covers}
<p><code>${escapeXml(outcome.file)}</code> · ${durationText(outcome.virtualNs)} of virtual time · digest <code>${outcome.digest.slice(0, 16)}</code></p>
${drawing(outcome)}<h3>Checks</h3>${checkTable(outcome)}<h3>Steps</h3>${stepTable(outcome)}${transactionTables(outcome)}</details>`;
}

const STYLE = `body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}
table{border-collapse:collapse;width:100%;margin:.5rem 0}th,td{border-bottom:1px solid #ccc;text-align:left;padding:.2rem .5rem;vertical-align:top}
details.scenario{border-left:6px solid #0072b2;padding:.3rem 1rem;margin:1rem 0}details.scenario.fail{border-left:6px double #d55e00}
details.scenario.inconclusive{border-left:6px dotted #000}summary{cursor:pointer}summary:focus-visible{outline:3px solid #0072b2}
svg{width:100%;height:auto}svg text{font-size:12px}tr.fail td:first-child{font-weight:bold}figure{margin:1rem 0}`;

/** The report as one HTML document. */
export function htmlReport(run: FinishedRun): string {
  const sections = run.scenarios.map(({ outcome }) => section(outcome)).join('\n');
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>iovaduct report</title><style>${STYLE}</style></head>
<body><h1>iovaduct report</h1><p>${escapeXml(totalsLine(run))}</p><p>Digest <code>${runDigest(run)}</code></p>
<svg width="0" height="0" aria-hidden="true"><defs>${PATTERNS}</defs></svg>
${sections}
</body></html>
`;
}
