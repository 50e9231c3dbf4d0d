/**
 * What happened when, over all hosts: steps and migrations of the main lane as bars, one lane a host with the guests that were
 * there as bars, events and transactions as ticks.
 *
 * Virtual time spans nine orders of magnitude in one run, so the axis gives room to what happened, not to waiting; a button
 * makes it true to scale. Ticks that would lie over each other become one with a number.
 */
import { useState } from 'preact/hooks';
import { durationText } from '../../scenario/units.js';
import type { PageEvent, PageMigration, PageRound, PageScenario, PageStep, PageTransaction, PageWay } from './data.js';
import { Axis, Figure, Row, type Mark } from './figure.js';
import {
  classOf,
  dataText,
  DEVICE_STATE_FILLS,
  EVENT_CLASSES,
  isDrawnAsBar,
  PHASE_FILLS,
  STEP_FILLS,
  Swatch,
  type EventClass,
} from './look.js';
import { axisLabels, clustered, linearTimeScale, packed, timeScale, type Scale } from './scale.js';
import { StepLinks } from './step-links.js';

const ROW_HEIGHT = 24;
const BAR_HEIGHT = 18;
/** What is shorter is drawn this wide, over its neighbour if need be. */
const MIN_BAR = 5;
/** Ticks nearer than this become one; more where their numbers are large. */
const TICK_ROOM = 13;
const CROWDED_TICK_ROOM = 24;
const CROWD = 200;
/** Ticks up to this number each get a place of their own on the axis. */
const PLACED_TICKS = 100;
/** Things named in the tooltip of a tick that stands for many, and rows of the table below. */
const NAMED = 8;
const TABLE_ROWS = 500;

interface Bar {
  readonly key: string;
  readonly from: number;
  readonly to: number;
  readonly fill: string;
  readonly text: string;
  readonly words: string;
}

interface Tick {
  readonly key: string;
  readonly timeNs: number;
  readonly x: number;
  readonly look: EventClass;
  readonly words: string;
}

interface DrawnRow {
  readonly lane: string;
  readonly title: string;
  readonly marks: (y: number) => Mark[];
}

function stepWords(step: PageStep): string {
  const took = durationText(step.endNs - step.startNs);
  return `${step.kind}, line ${step.line}, at ${durationText(step.startNs)}, took ${took}, ${step.verdict}: ${step.text}`;
}

function eventWords(event: PageEvent): string {
  return `${durationText(event.timeNs)} ${event.node}: ${event.kind} ${dataText(event)}`;
}

function barMark(bar: Bar, y: number): Mark {
  const { key, from, to, fill, text, words } = bar;
  // `dma: silent` may be shortened to `dma`, its fill says the rest.
  const inside = [text, text.replace(/:.*/, '')].find((short) => to - from > short.length * 6.4 + 6);
  return {
    keys: [key],
    words,
    draw: () => (
      <>
        <rect x={from} y={y} width={to - from} height={BAR_HEIGHT} fill={fill} class="edge" rx="2" />
        {inside !== undefined && (
          <text x={from + 4} y={y + 13} class="inside">
            {inside}
          </text>
        )}
      </>
    ),
  };
}

/** The worst comes first: its shape stands for the others. */
const BY_WEIGHT = Object.keys(EVENT_CLASSES) as EventClass[];

function lookOf(record: PageTransaction, ways: readonly PageWay[]): EventClass {
  return record.ways.some((way) => ways[way]?.explanation !== undefined) ? 'trouble' : 'memory';
}

function tickMark(ticks: readonly Tick[], y: number): Mark {
  const sorted = ticks.toSorted((a, b) => BY_WEIGHT.indexOf(a.look) - BY_WEIGHT.indexOf(b.look));
  const { colour, shape } = EVENT_CLASSES[sorted[0]?.look ?? 'memory'];
  const inOrder = ticks.toSorted((a, b) => a.timeNs - b.timeNs);
  const more = inOrder.length > NAMED ? [`and ${inOrder.length - NAMED} more`] : [];
  return {
    keys: inOrder.map(({ key }) => key),
    words: [...inOrder.slice(0, NAMED).map((tick) => tick.words), ...more].join('\n'),
    draw: () => (
      <g transform={`translate(${ticks[0]?.x ?? 0} ${y + BAR_HEIGHT / 2})`}>
        <rect x="-8" y="-10" width="16" height="20" class="touch" />
        <path d={shape} fill={colour} stroke={colour} stroke-width="2" class="shape" />
        {ticks.length > 1 && (
          <text x="0" y="-7" class="count" text-anchor="middle">
            {ticks.length}
          </text>
        )}
      </g>
    ),
  };
}

function dirtyWords({ dirtyPages, devicePages, deviceBytes }: PageRound): string {
  const byDevices = devicePages === undefined || devicePages === 0 ? '' : ` (${devicePages} written by devices)`;
  const left = dirtyPages === undefined ? '' : `, ${dirtyPages} dirty pages left${byDevices}`;
  return deviceBytes === undefined || deviceBytes === 0 ? left : `, ${deviceBytes} bytes of device state${left}`;
}

/** The times that need a place on the axis: the ends of all bars, and ticks as long as they are few or tell of trouble. */
function timesOf(scenario: PageScenario): number[] {
  const { steps, migrations, stays, deviceStates, events, transactions, virtualNs } = scenario;
  const moving = migrations.flatMap((migration) => [migration, ...migration.phases, ...migration.rounds]);
  const bars = [...steps, ...moving, ...stays, ...deviceStates];
  const ticks = [...events, ...transactions.flatMap(({ records }) => records)];
  const troubles = events.filter((event) => classOf(event) === 'trouble').slice(0, PLACED_TICKS);
  const placed = ticks.length <= PLACED_TICKS ? ticks : troubles;
  return [0, virtualNs, ...bars.flatMap((bar) => [bar.startNs, bar.endNs]), ...placed.map((tick) => tick.timeNs)];
}

function barRows(lane: string, title: string, bars: readonly Bar[]): DrawnRow[] {
  return packed(bars, -MIN_BAR - 1).map((row, index) => ({
    lane,
    title: index === 0 ? title : '',
    marks: (y) => row.map((bar) => barMark(bar, y)),
  }));
}

function tickRows(lane: string, title: string, ticks: readonly Tick[]): DrawnRow[] {
  if (ticks.length === 0) return [];
  const room = ticks.length > CROWD ? CROWDED_TICK_ROOM : TICK_ROOM;
  return [{ lane, title, marks: (y) => clustered(ticks, room).map((group) => tickMark(group, y)) }];
}

function rowsOf(scenario: PageScenario, scale: Scale<number>): DrawnRow[] {
  const extent = (startNs: number, endNs: number): { from: number; to: number } => {
    const from = scale.at(startNs);
    return { from, to: Math.max(scale.at(endNs), from + MIN_BAR) };
  };
  const steps = scenario.steps.map((step, index): Bar => ({
    key: `step/${index}`,
    ...extent(step.startNs, step.endNs),
    fill: STEP_FILLS[step.verdict] ?? 'var(--calm)',
    text: step.verdict === 'ok' ? step.kind : `${step.kind}: ${step.verdict}`,
    words: stepWords(step),
  }));
  const nameOf = ({ guest, from, to }: PageMigration): string => `${guest} ${from} → ${to}`;
  const phases = scenario.migrations.flatMap((migration, number) =>
    migration.phases.map((phase, index): Bar => ({
      key: `phase/${number}.${index}`,
      ...extent(phase.startNs, phase.endNs),
      fill: PHASE_FILLS[phase.name] ?? 'var(--calm)',
      text: phase.name,
      words: `${nameOf(migration)}: ${phase.name} from ${durationText(phase.startNs)}, ${durationText(phase.endNs - phase.startNs)}`,
    })),
  );
  const rounds = scenario.migrations.flatMap((migration, number) =>
    migration.rounds.map((round, index): Bar => ({
      key: `round/${number}.${index}`,
      ...extent(round.startNs, round.endNs),
      fill: index % 2 === 0 ? 'var(--sky)' : 'url(#p-direct-relaxable)',
      text: `round ${index}`,
      words: `${nameOf(migration)}: round ${index}, ${durationText(round.endNs - round.startNs)}, ${round.pages} pages (${round.zeroPages} zero), ${round.bytes} bytes on the wire${dirtyWords(round)}`,
    })),
  );
  const tick = (event: PageEvent, index: number): Tick => ({
    key: `event/${index}`,
    ...{ timeNs: event.timeNs, x: scale.at(event.timeNs), look: classOf(event), words: eventWords(event) },
  });
  const eventsOf = (node: string): Tick[] =>
    scenario.events.flatMap((event, index) =>
      event.node === node && !isDrawnAsBar(event) ? [tick(event, index)] : [],
    );
  const statesOf = (host: string): DrawnRow[] => {
    const states = scenario.deviceStates.map((one, index) => ({ ...one, index })).filter((one) => one.host === host);
    return [...new Set(states.map(({ device }) => device))].flatMap((device) => {
      const bars = states
        .filter((one) => one.device === device)
        .map(({ state, startNs, endNs, index }): Bar => ({
          key: `device-state/${index}`,
          ...extent(startNs, endNs),
          fill: DEVICE_STATE_FILLS[state] ?? 'var(--calm)',
          text: state,
          words: `${device} on ${host} is ${state} from ${durationText(startNs)}, ${durationText(endNs - startNs)}`,
        }));
      return barRows(`host ${host}`, device, bars);
    });
  };
  const hosts = scenario.hosts.flatMap((host) => {
    const lane = `host ${host}`;
    const stays = scenario.stays.flatMap((stay, index): Bar[] => {
      if (stay.host !== host) return [];
      const words = `${stay.guest} runs on ${host} from ${durationText(stay.startNs)} to ${durationText(stay.endNs)}`;
      const { from, to } = extent(stay.startNs, stay.endNs);
      return [{ key: `stay/${index}`, from, to, fill: 'var(--calm)', text: `${stay.guest} runs here`, words }];
    });
    const records = scenario.transactions.find((one) => one.host === host)?.records ?? [];
    const dma = records.map((record, index): Tick => ({
      key: `dma/${host}.${index}`,
      timeNs: record.timeNs,
      x: scale.at(record.timeNs),
      look: lookOf(record, scenario.ways),
      words: `${durationText(record.timeNs)} ${record.device} ${record.direction} ${record.iova}: ${record.ends.join(', ')}`,
    }));
    return [
      ...barRows(lane, 'guests', stays),
      ...statesOf(host),
      ...tickRows(lane, 'events', eventsOf(host)),
      ...tickRows(lane, 'DMA', dma),
    ];
  });
  return [
    ...barRows('main', 'steps', steps),
    ...barRows('main', 'migration', phases),
    ...barRows('main', 'rounds', rounds),
    ...tickRows('main', 'events', eventsOf('main')),
    ...hosts,
  ];
}

interface ChosenProps {
  readonly scenario: PageScenario;
  readonly selected: string;
  readonly marks: readonly Mark[];
}

/** What the address points at, in words; for a step with the ways on from there. */
function Chosen({ scenario, selected, marks }: ChosenProps) {
  const mark = marks.find(({ keys }) => keys.includes(selected));
  if (mark === undefined) return null;
  const number = Number(/^step\/(\d+)$/.exec(selected)?.[1]);
  const step = scenario.steps[number];
  if (step === undefined) return <p class="panel spoken">{mark.words}</p>;
  return (
    <div class={`panel ${step.verdict === 'ok' ? '' : 'bad'}`}>
      <p>
        <b>
          Step {number + 1}, {step.kind}: {step.verdict}
        </b>{' '}
        · <a href={`#${scenario.id}/line/${step.line}`}>line {step.line}</a> · at {durationText(step.startNs)}, took{' '}
        {durationText(step.endNs - step.startNs)}
      </p>
      <p>{step.text}</p>
      {step.explanation !== undefined && <p class="why">{step.explanation}</p>}
      <p class="ways-on">
        <StepLinks scenario={scenario} step={number} />
      </p>
    </div>
  );
}

interface FillsProps {
  readonly what: string;
  readonly names: readonly string[];
  readonly fills: Readonly<Record<string, string>>;
}

function Fills({ what, names, fills }: FillsProps) {
  if (names.length === 0) return null;
  return (
    <p class="legend">
      <span class="note">{what}</span>
      {[...new Set(names)].map((name) => (
        <Swatch key={name} fill={fills[name] ?? 'var(--calm)'}>
          {name}
        </Swatch>
      ))}
    </p>
  );
}

/** What there is in this drawing, and no more. */
function Legend({ scenario }: { readonly scenario: PageScenario }) {
  const { steps, migrations, deviceStates, events, transactions, ways } = scenario;
  const looks = new Set([
    ...events.filter((event) => !isDrawnAsBar(event)).map(classOf),
    ...transactions.flatMap(({ records }) => records.map((record) => lookOf(record, ways))),
  ]);
  return (
    <>
      <p class="legend">
        {BY_WEIGHT.filter((look) => looks.has(look)).map((look) => (
          <span key={look} class="swatch">
            <svg width="18" height="16" viewBox="-9 -8 18 16" aria-hidden="true">
              <path
                d={EVENT_CLASSES[look].shape}
                fill={EVENT_CLASSES[look].colour}
                stroke={EVENT_CLASSES[look].colour}
                stroke-width="2"
                class="shape"
              />
            </svg>
            {EVENT_CLASSES[look].words}
          </span>
        ))}
      </p>
      <Fills what="steps" names={steps.map(({ verdict }) => verdict)} fills={STEP_FILLS} />
      <Fills
        what="phases of a migration"
        names={migrations.flatMap(({ phases }) => phases.map(({ name }) => name))}
        fills={PHASE_FILLS}
      />
      <Fills what="states of a device" names={deviceStates.map(({ state }) => state)} fills={DEVICE_STATE_FILLS} />
    </>
  );
}

function EventTable({ scenario }: { readonly scenario: PageScenario }) {
  const shown = scenario.events.slice(0, TABLE_ROWS);
  const rest = scenario.events.length - shown.length;
  return (
    <details>
      <summary>Events as a table ({scenario.events.length})</summary>
      <div class="wide">
        <table>
          <caption class="unseen">Events</caption>
          <thead>
            <tr>
              <th>At</th>
              <th>Where</th>
              <th>What</th>
              <th>Facts</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((event, index) => (
              <tr key={index}>
                <td>{durationText(event.timeNs)}</td>
                <td>{event.node}</td>
                <td>{event.kind}</td>
                <td>{dataText(event)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rest > 0 && <p class="note">and {rest} more, on the axis above</p>}
    </details>
  );
}

interface TimelineProps {
  readonly scenario: PageScenario;
  readonly selected: string;
}

/** The drawing, what is chosen in it, and its facts as a table. */
export function Timeline({ scenario, selected }: TimelineProps) {
  const [isLinear, setLinear] = useState(false);
  const leftOut = scenario.leftOut.map(({ kind, count }) => `${count} of ${kind}`).join(', ');
  return (
    <section class="part">
      <h3>Timeline</h3>
      <p class="tools">
        <button type="button" aria-pressed={isLinear} onClick={() => setLinear(!isLinear)}>
          true to scale
        </button>
        <span class="note">virtual time · Tab goes from row to row, arrow keys along a row, Enter keeps a mark</span>
      </p>
      <Figure label="Steps, migrations and events over virtual time; the tables below have the same facts">
        {(width, point) => {
          const left = width < 560 ? 88 : 128;
          const scale = isLinear
            ? linearTimeScale(scenario.virtualNs, left, width - left - 12)
            : timeScale(timesOf(scenario), left, width - left - 12);
          const rows = rowsOf(scenario, scale);
          let y = 6;
          const drawn = rows.map((row, index) => {
            const gap = gapBefore(rows, index, row);
            const top = y + gap;
            y = top + ROW_HEIGHT;
            return { row, top, marks: row.marks(top), isFirst: rows[index - 1]?.lane !== row.lane };
          });
          return (
            <>
              <svg viewBox={`0 0 ${width} ${y + 22}`}>
                <Axis labels={axisLabels(scale, timeText)} bottom={y} />
                {drawn.map(({ row, top, marks, isFirst }, index) => {
                  return (
                    <g key={index}>
                      {isFirst && index > 0 && <line x1="0" x2={width} y1={top - 14} y2={top - 14} class="between" />}
                      {isFirst && (
                        <text x="0" y={top + 2} class="lane">
                          {row.lane}
                        </text>
                      )}
                      <text x={left - 6} y={top + 13} text-anchor="end" class="row">
                        {row.title}
                      </text>
                      <Row
                        id={scenario.id}
                        label={`${row.lane}: ${row.title}`}
                        marks={marks}
                        selected={selected}
                        point={point}
                      />
                    </g>
                  );
                })}
              </svg>
              <div aria-live="polite">
                <Chosen scenario={scenario} selected={selected} marks={drawn.flatMap(({ marks }) => marks)} />
              </div>
            </>
          );
        }}
      </Figure>
      <Legend scenario={scenario} />
      {leftOut !== '' && <p class="note">left out of this page: {leftOut}</p>}
      <EventTable scenario={scenario} />
    </section>
  );
}

/** A time in words; one that would read like the label before says how much later it is. */
function timeText(timeNs: number, before?: number): string {
  const isSame = before !== undefined && durationText(timeNs) === durationText(before);
  return isSame ? `+${durationText(timeNs - before)}` : durationText(timeNs);
}

/** Room above the first row of a lane, for its name. */
function gapBefore(rows: readonly DrawnRow[], index: number, row: DrawnRow): number {
  return rows[index - 1]?.lane === row.lane ? 0 : index === 0 ? 8 : 22;
}
