/**
 * Guest RAM against what every host keeps for itself, on one axis of addresses; below it what lay over what, and where DMA
 * left its way.
 */
import { Axis, Figure, Row, type Mark } from './figure.js';
import type { PageScenario, PageSpan } from './data.js';
import { RANGE_KINDS, rangeWords, Swatch } from './look.js';
import { addressScale, axisLabels, packed, type Scale } from './scale.js';

const LANE_HEIGHT = 34;
const MARKED_HEIGHT = 22;

interface Drawn {
  readonly title: string;
  readonly spans: readonly (PageSpan & { readonly key: string })[];
  readonly height: number;
}

function lanesOf({ lanes, marked }: PageScenario): Drawn[] {
  const ranges = lanes.map((lane, number): Drawn => ({
    title: lane.title,
    spans: lane.spans.map((span, index) => ({ ...span, key: `span/${number}.${index}` })),
    height: LANE_HEIGHT,
  }));
  const troubles = ['conflict', 'stray', 'lost'].flatMap((kind): Drawn[] => {
    const spans = marked.flatMap((span, index) => (span.kind === kind ? [{ ...span, key: `range/${index}` }] : []));
    const rows = packed(spans.map((span) => ({ ...span, from: Number(span.start), to: Number(span.last) + 1 })));
    return rows.map((row, index) => ({
      title: index === 0 ? (RANGE_KINDS[kind]?.[1] ?? kind) : '',
      spans: row,
      height: MARKED_HEIGHT,
    }));
  });
  return [...ranges, ...troubles];
}

function rangeText({ start, last }: PageSpan): string {
  return `${start}-${last}`;
}

function markOf(span: Drawn['spans'][number], scale: Scale<bigint>, y: number, height: number): Mark {
  const from = scale.at(BigInt(span.start));
  const width = Math.max(scale.at(BigInt(span.last) + 1n) - from, 3);
  const fill = RANGE_KINDS[span.kind]?.[0] ?? 'var(--faint)';
  return {
    keys: [span.key],
    words: rangeWords(span),
    draw: () => <rect x={from} y={y} width={width} height={height - 10} fill={fill} class="edge" />,
  };
}

/** Short enough for the room left of the axis. */
function shortened(title: string, room: number): string {
  const letters = Math.floor(room / 6.6);
  return title.length <= letters ? title : `${title.slice(0, letters - 1)}…`;
}

interface MapProps {
  readonly scenario: PageScenario;
  readonly selected: string;
}

/** The drawing, its legend, and its facts as a table. */
export function AddressMap({ scenario, selected }: MapProps) {
  const lanes = lanesOf(scenario);
  if (lanes.length === 0) return null;
  const kinds = [...new Set(lanes.flatMap((lane) => lane.spans.map((span) => span.kind)))];
  const chosen = lanes.flatMap((lane) => lane.spans).find(({ key }) => key === selected);
  const step = scenario.marked[Number(/^range\/(\d+)$/.exec(selected)?.[1])]?.step;
  return (
    <section class="part">
      <h3>Addresses</h3>
      <Figure label="Guest RAM against the ranges of each host; the table below has the same facts">
        {(width, point) => {
          const left = width < 560 ? 96 : 168;
          const edges = lanes.flatMap((lane) => lane.spans.flatMap((s) => [BigInt(s.start), BigInt(s.last) + 1n]));
          const scale = addressScale(edges, left, width - left - 8);
          const bottom = lanes.reduce((sum, lane) => sum + lane.height, 4);
          let y = 4;
          return (
            <svg viewBox={`0 0 ${width} ${bottom + 22}`}>
              <Axis labels={axisLabels(scale, (edge) => `0x${edge.toString(16)}`)} bottom={bottom} />
              {scenario.marked.map(({ start, last }, index) => {
                const from = scale.at(BigInt(start));
                const to = Math.max(scale.at(BigInt(last) + 1n), from + 3);
                return <rect key={index} class="shade" x={from} y="0" width={to - from} height={bottom} />;
              })}
              {lanes.map((lane, index) => {
                const top = y;
                y += lane.height;
                return (
                  <g key={index}>
                    <text x="0" y={top + (lane.height - 10) / 2 + 4}>
                      {shortened(lane.title, left)}
                    </text>
                    <Row
                      id={scenario.id}
                      label={lane.title}
                      marks={lane.spans.map((span) => markOf(span, scale, top, lane.height))}
                      selected={selected}
                      point={point}
                    />
                  </g>
                );
              })}
            </svg>
          );
        }}
      </Figure>
      {chosen !== undefined && (
        <p class="panel">
          {rangeWords(chosen)}
          {step !== undefined && (
            <>
              {' · '}
              <a href={`#${scenario.id}/step/${step}`}>the step it came of</a>
            </>
          )}
        </p>
      )}
      <p class="legend">
        {kinds.map((kind) => (
          <Swatch key={kind} fill={RANGE_KINDS[kind]?.[0] ?? 'var(--faint)'}>
            {RANGE_KINDS[kind]?.[1] ?? kind}
          </Swatch>
        ))}
        <span class="note">widths grow with the logarithm of the distance</span>
      </p>
      <details>
        <summary>Ranges as a table</summary>
        <div class="wide">
          <table>
            <caption class="unseen">Ranges of addresses</caption>
            <thead>
              <tr>
                <th>Where</th>
                <th>Range</th>
                <th>Kind</th>
                <th>What</th>
              </tr>
            </thead>
            <tbody>
              {lanes.flatMap((lane) =>
                lane.spans.map((span) => (
                  <tr key={span.key}>
                    <td>{lane.title}</td>
                    <td>
                      <code>{rangeText(span)}</code>
                    </td>
                    <td>{RANGE_KINDS[span.kind]?.[1] ?? span.kind}</td>
                    <td>{span.label}</td>
                  </tr>
                )),
              )}
            </tbody>
          </table>
        </div>
      </details>
    </section>
  );
}
