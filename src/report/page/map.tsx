/**
 * Guest RAM against what every host keeps for itself, on one axis of addresses; below it what lay over what, and where DMA
 * left its way.
 *
 * No range hides another: ranges of a host that overlap have rows of their own, and guest RAM is a faint band down all rows.
 */
import { Axis, Figure, Row, type Mark } from './figure.js';
import type { PageScenario, PageSpan } from './data.js';
import { RANGE_KINDS, rangeWords, spanSize, Swatch } from './look.js';
import { addressScale, axisLabels, layered, type Scale } from './scale.js';

const BAR_HEIGHT = 22;
const MARKED_HEIGHT = 14;
/** Between rows of a lane, and after it. */
const ROW_GAP = 3;
const LANE_GAP = 9;
/** What is narrower is drawn this wide. */
const MIN_WIDTH = 3;
/** Pixels of a letter inside a range. */
const LETTER = 6.2;

type DrawnSpan = PageSpan & { readonly key: string };

interface Drawn {
  readonly label: string;
  /** The lane's name, at its first row only. */
  readonly title: string;
  readonly spans: readonly DrawnSpan[];
  readonly height: number;
  readonly gap: number;
}

function rowsOf(label: string, groups: readonly (readonly DrawnSpan[])[], height: number): Drawn[] {
  const rows = layered(groups);
  return rows.map((spans, index) => ({
    ...{ label, spans, height },
    title: index === 0 ? label : '',
    gap: index === rows.length - 1 ? LANE_GAP : ROW_GAP,
  }));
}

function lanesOf({ lanes, marked }: PageScenario): Drawn[] {
  const ranges = lanes.flatMap((lane, number) => {
    const spans = lane.spans.map((span, index) => ({ ...span, key: `span/${number}.${index}` }));
    const kinds = [...new Set([...Object.keys(RANGE_KINDS), ...spans.map(({ kind }) => kind)])];
    // What is outside `dma-ranges` belongs beside them.
    const groupOf = (kind: string): string => (kind === 'outside' ? 'dma-range' : kind);
    const groups = kinds.map((kind) => spans.filter((span) => groupOf(span.kind) === kind));
    return rowsOf(lane.title, groups, BAR_HEIGHT);
  });
  const troubles = ['conflict', 'stray', 'lost'].flatMap((kind) => {
    const spans = marked.flatMap((span, index) => (span.kind === kind ? [{ ...span, key: `range/${index}` }] : []));
    return rowsOf(RANGE_KINDS[kind]?.[1] ?? kind, [spans], MARKED_HEIGHT);
  });
  return [...ranges, ...troubles];
}

function rangeText({ start, last }: PageSpan): string {
  return `${start}-${last}`;
}

function placeOf({ start, last }: PageSpan, scale: Scale<bigint>): { readonly x: number; readonly width: number } {
  const x = scale.at(BigInt(start));
  return { x, width: Math.max(scale.at(BigInt(last) + 1n) - x, MIN_WIDTH) };
}

/** The longest text that has room inside a range. */
function insideText(span: PageSpan, width: number): string | undefined {
  const size = spanSize(span);
  const texts = span.kind === 'ram' ? [`${span.label}, ${size}`, size] : [span.label, size];
  return texts.find((text) => text.length * LETTER + 8 <= width);
}

function markOf(span: DrawnSpan, scale: Scale<bigint>, y: number, height: number): Mark {
  const { x, width } = placeOf(span, scale);
  const fill = RANGE_KINDS[span.kind]?.[0] ?? 'var(--faint)';
  const inside = height < BAR_HEIGHT ? undefined : insideText(span, width);
  return {
    keys: [span.key],
    words: rangeWords(span),
    draw: () => (
      <>
        <rect x={x} y={y} width={width} height={height} fill={fill} class="edge" />
        {inside !== undefined && (
          <text x={x + 4} y={y + height / 2 + 4} class="inside">
            {inside}
          </text>
        )}
      </>
    ),
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
  const bands = lanes.flatMap((lane) => lane.spans).filter(({ kind }) => kind === 'ram');
  const step = scenario.marked[Number(/^range\/(\d+)$/.exec(selected)?.[1])]?.step;
  return (
    <section class="part">
      <h3>Addresses</h3>
      <Figure label="Guest RAM against the ranges of each host; the table below has the same facts">
        {(width, point) => {
          const left = width < 560 ? 96 : 168;
          const edges = lanes.flatMap((lane) => lane.spans.flatMap((s) => [BigInt(s.start), BigInt(s.last) + 1n]));
          const scale = addressScale(edges, left, width - left - 8);
          const bottom = lanes.reduce((sum, lane) => sum + lane.height + lane.gap, 4);
          let y = 4;
          return (
            <svg viewBox={`0 0 ${width} ${bottom + 22}`}>
              <Axis labels={axisLabels(scale, (edge) => `0x${edge.toString(16)}`)} bottom={bottom} />
              {bands.map((span, index) => (
                <rect key={index} class="band" {...placeOf(span, scale)} y="0" height={bottom} />
              ))}
              {scenario.marked.map((span, index) => (
                <rect key={index} class="shade" {...placeOf(span, scale)} y="0" height={bottom} />
              ))}
              {lanes.map((lane, index) => {
                const top = y;
                y += lane.height + lane.gap;
                return (
                  <g key={index}>
                    <text x="0" y={top + lane.height / 2 + 4}>
                      {shortened(lane.title, left)}
                    </text>
                    <Row
                      id={scenario.id}
                      label={lane.label}
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
                    <td>{lane.label}</td>
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
