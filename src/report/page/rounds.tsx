/**
 * A migration round by round: pages sent, bytes on the wire, dirty pages left, and the round during which the guest stood still.
 *
 * The first round carries the whole guest and the last a handful of pages, so the axes are logarithmic (inverse hyperbolic
 * sine, which has room for none). A canvas says nothing to a screen reader: the table below has the same numbers.
 */
import { useEffect } from 'preact/hooks';
import uPlot from 'uplot';
import { durationText } from '../../scenario/units.js';
import type { PageMigration, PageScenario } from './data.js';
import { useWidth } from './figure.js';

const HEIGHT = 250;

// uPlot declares these as ambient const enums, whose members isolated modules cannot name.
// eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment
const ARC_SINH: uPlot.Scale.Distr = 4;
// eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment
const RIGHT: uPlot.Axis.Side = 1;

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** `1.2M`: for the ticks of an axis. */
function shortNumber(value: number): string {
  const steps: readonly (readonly [number, string])[] = [
    [1e12, 'T'],
    [1e9, 'G'],
    [1e6, 'M'],
    [1e3, 'k'],
  ];
  for (const [factor, unit] of steps) if (value >= factor) return `${Number((value / factor).toPrecision(3))}${unit}`;
  return String(value);
}

/** Ticks at zero and at powers of ten up to the largest value, where there are many only at every second. */
function powers(_plot: uPlot, _axis: number, _min: number, max: number): number[] {
  const found = [0];
  for (let power = 1; power <= Math.max(max, 1); power *= 10) found.push(power);
  return found.length > 5 ? found.filter((_, index) => index === 0 || (index > 2 && index % 2 === 1)) : found;
}

/** Marks the last round of a completed migration. */
function shadeDowntime(migration: PageMigration, fill: string): (plot: uPlot) => void {
  return (plot) => {
    if (migration.outcome !== 'completed' || migration.rounds.length === 0) return;
    const { ctx, bbox } = plot;
    const last = migration.rounds.length - 1;
    const from = plot.valToPos(last - 0.5, 'x', true);
    const to = plot.valToPos(last + 0.5, 'x', true);
    ctx.save();
    ctx.fillStyle = fill;
    ctx.globalAlpha = 0.18;
    ctx.fillRect(from, bbox.top, to - from, bbox.height);
    ctx.globalAlpha = 1;
    ctx.strokeStyle = fill;
    ctx.setLineDash([6, 4]);
    ctx.strokeRect(from, bbox.top, to - from, bbox.height);
    ctx.restore();
  };
}

/** Says how long the guest stood still. */
function writeDowntime(migration: PageMigration, ink: string): (plot: uPlot) => void {
  return (plot) => {
    if (migration.outcome !== 'completed' || migration.rounds.length === 0) return;
    const { ctx, bbox } = plot;
    const to = plot.valToPos(migration.rounds.length - 0.5, 'x', true);
    ctx.save();
    ctx.fillStyle = ink;
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = 'right';
    ctx.textBaseline = 'top';
    ctx.fillText(`stopped, ${durationText(migration.downtimeNs)} down`, to - 6, bbox.top + 4);
    ctx.restore();
  };
}

/** In the legend: the number under the pointer, nothing where there is none. */
function pointedAt(_plot: uPlot, value: number | null): string {
  return value === null ? '' : String(value);
}

function optionsOf(migration: PageMigration, width: number): uPlot.Options {
  const ink = colour('--ink');
  const axis = { stroke: ink, grid: { stroke: colour('--line'), width: 1 }, ticks: { stroke: colour('--line') } };
  const amounts = { distr: ARC_SINH, asinh: 1, range: (_: uPlot, _min: number, max: number) => logRange(max) };
  const bars = uPlot.paths.bars;
  const count = migration.rounds.length;
  return {
    width,
    height: HEIGHT,
    scales: {
      x: { time: false, range: () => [-0.6, count - 0.4] },
      pages: amounts,
      bytes: amounts,
    },
    legend: { live: true },
    axes: [
      {
        ...axis,
        label: 'round',
        size: 30,
        labelSize: 20,
        splits: () => [...Array(count).keys()].filter((_, i) => i % Math.ceil(count / 20) === 0),
      },
      {
        ...axis,
        scale: 'pages',
        label: 'pages',
        splits: powers,
        filter: (_, splits) => splits,
        size: 56,
        values: (_, splits) => splits.map(shortNumber),
      },
      {
        ...axis,
        scale: 'bytes',
        label: 'bytes on the wire',
        side: RIGHT,
        splits: powers,
        filter: (_, splits) => splits,
        size: 56,
        values: (_, splits) => splits.map(shortNumber),
        grid: { show: false },
      },
    ],
    series: [
      { label: 'round', value: pointedAt },
      {
        label: 'pages sent (bars)',
        value: pointedAt,
        scale: 'pages',
        stroke: colour('--blue'),
        fill: colour('--sky'),
        width: 1,
        points: { show: false },
        ...(bars === undefined ? {} : { paths: bars({ size: [0.5, 60] }) }),
      },
      {
        label: 'bytes on the wire (dashed)',
        value: pointedAt,
        scale: 'bytes',
        stroke: colour('--ink'),
        width: 2,
        dash: [6, 4],
        points: { show: true, size: 6 },
      },
      {
        label: 'dirty pages left (dots)',
        value: pointedAt,
        scale: 'pages',
        stroke: colour('--vermillion'),
        width: 2,
        points: { show: true, size: 10, fill: colour('--vermillion') },
      },
    ],
    hooks: {
      drawClear: [shadeDowntime(migration, colour('--vermillion'))],
      draw: [writeDowntime(migration, ink)],
    },
  };
}

function logRange(max: number): [number, number] {
  return [0, 10 ** Math.ceil(Math.log10(Math.max(max, 1) * 1.5))];
}

function Chart({ migration }: { readonly migration: PageMigration }) {
  const { ref, width } = useWidth<HTMLDivElement>();
  useEffect(() => {
    const element = ref.current;
    if (element === null || width === 0) return;
    const { rounds } = migration;
    const data: uPlot.AlignedData = [
      rounds.map((_, index) => index),
      rounds.map((round) => round.pages),
      rounds.map((round) => round.bytes),
      rounds.map((round) => round.dirtyPages ?? null),
    ];
    let plot = new uPlot(optionsOf(migration, width), data, element);
    const scheme = matchMedia('(prefers-color-scheme: dark)');
    const redraw = (): void => {
      plot.destroy();
      plot = new uPlot(optionsOf(migration, width), data, element);
    };
    scheme.addEventListener('change', redraw);
    return () => {
      scheme.removeEventListener('change', redraw);
      plot.destroy();
    };
  }, [migration, width]);
  const { guest, from, to, rounds } = migration;
  const label = `Pages, bytes and dirty pages of ${rounds.length} rounds of ${guest} from ${from} to ${to}; the table has the same numbers`;
  return <div class="chart" ref={ref} role="img" aria-label={label} />;
}

function RoundTable({ migration }: { readonly migration: PageMigration }) {
  const isByWriter = migration.rounds.some(
    ({ devicePages, deviceBytes }) => (devicePages ?? 0) + (deviceBytes ?? 0) > 0,
  );
  const last = migration.outcome === 'completed' ? migration.rounds.length - 1 : -1;
  return (
    <details>
      <summary>Rounds as a table</summary>
      <div class="wide">
        <table>
          <caption class="unseen">
            Rounds of {migration.guest} from {migration.from} to {migration.to}
          </caption>
          <thead>
            <tr>
              <th>Round</th>
              <th>At</th>
              <th>Took</th>
              <th>Pages</th>
              <th>of them zero</th>
              <th>Bytes on the wire</th>
              <th>Dirty pages left</th>
              {isByWriter && <th>written by the guest</th>}
              {isByWriter && <th>written by devices</th>}
              {isByWriter && <th>Bytes of device state</th>}
            </tr>
          </thead>
          <tbody>
            {migration.rounds.map((round, index) => (
              <tr key={index}>
                <td>
                  {index}
                  {index === last ? ' (guest stopped)' : ''}
                </td>
                <td>{durationText(round.startNs)}</td>
                <td>{durationText(round.endNs - round.startNs)}</td>
                <td>{round.pages}</td>
                <td>{round.zeroPages}</td>
                <td>{round.bytes}</td>
                <td>{round.dirtyPages ?? 'not counted'}</td>
                {isByWriter && <td>{round.memoryPages}</td>}
                {isByWriter && <td>{round.devicePages}</td>}
                {isByWriter && <td>{round.deviceBytes}</td>}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

/** The migrations that got as far as a round. */
export function Migrations({ scenario }: { readonly scenario: PageScenario }) {
  const shown = scenario.migrations.filter(({ rounds }) => rounds.length > 0);
  if (shown.length === 0) return null;
  return (
    <section class="part">
      <h3>Migration</h3>
      {shown.map((migration, index) => (
        <div key={index} class="migration">
          <p>
            <b>
              {migration.guest}: {migration.from} → {migration.to}, {migration.outcome}
            </b>
            {migration.reason === undefined ? '' : ` (${migration.reason})`} · {migration.rounds.length} rounds ·{' '}
            {durationText(migration.endNs - migration.startNs)}
            {migration.outcome === 'completed' ? ` · ${durationText(migration.downtimeNs)} down` : ''}
          </p>
          <Chart migration={migration} />
          <RoundTable migration={migration} />
        </div>
      ))}
    </section>
  );
}
