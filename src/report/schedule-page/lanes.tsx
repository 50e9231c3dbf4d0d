/**
 * The lanes: a column a task, a row a step, from top to bottom.
 *
 * Only the rows in sight are drawn, so four thousand steps cost what forty do. A block says from which gate its task went on; a line joins
 * the steps of a task, dotted while it waits. Beside it are the locks it holds, by number. A lane is as wide as its longest
 * block and the most bars that lie beside each other ask for; what room is left over all lanes share, what is missing the labels lose.
 */
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import type { Race } from '../../explore/race.js';
import { endText, type Trace, type TraceStep } from '../../explore/trace.js';
import { blockText, isDeviation, lockTags, rowAt, touch, type Arrow, type HoldBar, type Lane } from './model.js';

const ROW = 22;
const BLOCK = 18;
const GUTTER = 92;
const BAR = 13;
const BAR_PITCH = 15;
/** Bars of one lane that have a place of their own. */
const MOST_BARS = 8;
/** Room for a block, bars left out. */
const MIN_BLOCK = 100;
const MOST_BLOCK = 300;
/** Between a block and its bars, and from them to the next lane. */
const LANE_GAP = 14;
const LETTER = 7.3;
/** Room for the sign before a label and the marks behind it. */
const SIGNS_ROOM = 62;
/** Room for what an end row says. */
const END_WIDTH = 330;
const SCROLLBAR = 18;
/** Rows drawn beyond those in sight. */
const MARGIN = 12;

interface LanesProps {
  readonly trace: Trace;
  readonly race: Race;
  readonly lanes: readonly Lane[];
  readonly bars: readonly HoldBar[];
  readonly arrows: readonly Arrow[];
  /** Steps that are shown. */
  readonly rows: readonly number[];
  readonly hidden: ReadonlySet<number>;
  readonly cursor: number;
  readonly word: number | undefined;
  readonly lock: number | undefined;
  readonly onMove: (at: number) => void;
}

/** A column in pixels. */
interface Column {
  readonly x: number;
  /** Of blocks; bars follow. */
  readonly blockWidth: number;
  readonly width: number;
}

interface Place {
  readonly column: (task: number) => Column;
  /** Middle of the row of a step, or of where it would be. */
  readonly y: (at: number) => number;
}

const NO_COLUMN: Column = { x: 0, blockWidth: 0, width: 0 };

/** What a lane asks for. */
interface Wish {
  readonly task: number;
  readonly block: number;
  readonly bars: number;
}

function wishesOf({ steps }: Trace, lanes: readonly Lane[], bars: readonly HoldBar[]): Wish[] {
  const longest = new Map<number, number>();
  for (const step of steps) longest.set(step.task, Math.max(longest.get(step.task) ?? 0, blockText(step).length));
  const depths = new Map<number, number>();
  for (const { task, depth } of bars) depths.set(task, Math.max(depths.get(task) ?? 0, depth + 1));
  return lanes.map(({ task }) => ({
    task,
    block: Math.max(MIN_BLOCK, Math.min(MOST_BLOCK, (longest.get(task) ?? 0) * LETTER + SIGNS_ROOM)),
    bars: Math.min(MOST_BARS, depths.get(task) ?? 0) * BAR_PITCH + LANE_GAP,
  }));
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0);
}

/** How wide the lanes would be if nothing had to be cut. */
export function wantedWidth(trace: Trace, lanes: readonly Lane[], bars: readonly HoldBar[]): number {
  const wanted = GUTTER + sum(wishesOf(trace, lanes, bars).map(({ block, bars: beside }) => block + beside));
  return Math.ceil(Math.max(wanted, END_WIDTH) + SCROLLBAR);
}

/** Columns from left to right: labels are cut, all in the same proportion, where there is not the room for them. */
function columnsOf(wishes: readonly Wish[], room: number): Map<number, Column> {
  const forBars = sum(wishes.map(({ bars }) => bars));
  const spare = room - forBars - sum(wishes.map(({ block }) => block));
  const cuttable = sum(wishes.map(({ block }) => block - MIN_BLOCK));
  const cut = spare >= 0 || cuttable === 0 ? 0 : Math.min(1, -spare / cuttable);
  const more = Math.max(0, spare) / Math.max(1, wishes.length);
  const columns = new Map<number, Column>();
  let x = GUTTER;
  for (const { task, block, bars } of wishes) {
    const blockWidth = Math.floor(block - cut * (block - MIN_BLOCK) + more);
    columns.set(task, { x, blockWidth, width: blockWidth + bars });
    x += blockWidth + bars;
  }
  return columns;
}

/** By lock; a lock also has a number. */
const LOCK_COLOURS = ['--blue', '--green', '--purple', '--orange', '--sky', '--faint'];

export function lockColour(lock: number): string {
  return `var(${LOCK_COLOURS[lock % LOCK_COLOURS.length] ?? '--faint'})`;
}

/** What fits: without the layer, then without its end. */
function shortened(whole: string, width: number): string {
  const letters = Math.max(3, Math.floor(width / LETTER));
  const text = whole.length <= letters ? whole : whole.replace(/^(→ )?[^: ]+:/, '$1');
  return text.length <= letters ? text : `${text.slice(0, letters - 1)}…`;
}

function Block({ step, at, place, props }: { step: TraceStep; at: number; place: Place; props: LanesProps }) {
  const { lanes, cursor, word, race, trace } = props;
  const isFailure = step.to === 'failure';
  const isHardware = lanes.find(({ task }) => task === step.task)?.isProgram !== true;
  const touched = touch(step, word);
  const pair = race.pairs.findIndex(({ first, second }) => first.at === at || second.at === at);
  const classes = [
    'block',
    isHardware ? 'hardware' : '',
    isFailure ? 'broken' : '',
    at === cursor ? 'cursor' : '',
    pair >= 0 ? 'race' : '',
    isDeviation(step) ? 'deviates' : '',
  ];
  const { x, blockWidth: width } = place.column(step.task);
  const y = place.y(at) - BLOCK / 2;
  const sign = isFailure ? '✖ ' : isDeviation(step) ? '◆ ' : step.choices.length > 0 ? '◇ ' : '';
  const marks = [touched === undefined ? '' : touched === 'read' ? 'r' : 'W', pair >= 0 ? `R${pair + 1}` : '']
    .join(' ')
    .trim();
  const room = width - 10 - marks.length * 8;
  return (
    <g class={classes.join(' ')} onClick={() => props.onMove(at)}>
      <title>
        {`step ${step.index} of ${trace.tasks.find(({ number }) => number === step.task)?.name ?? ''}: from ${step.from} to ${step.to}`}
      </title>
      <rect x={x} y={y} width={width} height={BLOCK} rx={3} />
      <text x={x + 5} y={y + 13}>
        {sign !== '' && <tspan class="sign">{sign}</tspan>}
        {shortened(blockText(step), room - sign.length * LETTER)}
      </text>
      {marks !== '' && (
        <text class="mark" x={x + width - 5} y={y + 13} text-anchor="end">
          {marks}
        </text>
      )}
    </g>
  );
}

function curve(place: Place, trace: Trace, { from, to }: Arrow): string {
  const [a, b] = [trace.steps[from], trace.steps[to]];
  if (a === undefined || b === undefined) return '';
  const [left, right] = [place.column(a.task), place.column(b.task)];
  const goesRight = right.x > left.x;
  const x1 = left.x + (goesRight ? left.blockWidth : 0);
  const x2 = right.x + (goesRight ? 0 : right.blockWidth);
  const [y1, y2] = [place.y(from), place.y(to)];
  const bend = Math.max(24, Math.abs(x2 - x1) / 2) * (goesRight ? 1 : -1);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}

export function Lanes(props: LanesProps) {
  const { trace, race, bars, arrows, rows, cursor, hidden, lock } = props;
  const scroller = useRef<HTMLDivElement>(null);
  const [sight, setSight] = useState({ top: 0, height: 600, width: 700 });
  const lanes = props.lanes.filter(
    ({ task }) => !hidden.has(task) || rows.some((at) => trace.steps[at]?.task === task),
  );

  const look = (): void => {
    const element = scroller.current;
    if (element !== null)
      setSight({ top: element.scrollTop, height: element.clientHeight, width: element.clientWidth });
  };
  useEffect(() => {
    look();
    const observer = new ResizeObserver(look);
    if (scroller.current !== null) observer.observe(scroller.current);
    return () => observer.disconnect();
  }, []);
  const cursorRow = rowAt(rows, cursor);
  useEffect(() => {
    const element = scroller.current;
    if (element === null) return;
    const y = cursorRow * ROW;
    const isInSight = y >= element.scrollTop + ROW && y <= element.scrollTop + element.clientHeight - 3 * ROW;
    if (!isInSight) element.scrollTop = y - element.clientHeight / 2;
    look();
  }, [cursorRow, rows]);

  const wishes = useMemo(() => wishesOf(trace, lanes, bars), [trace, bars, hidden, rows]);
  const tags = useMemo(() => lockTags(trace), [trace]);
  const columns = columnsOf(wishes, sight.width - GUTTER);
  const total = Math.max(GUTTER + sum([...columns.values()].map(({ width }) => width)), END_WIDTH);
  const place: Place = {
    column: (task) => columns.get(task) ?? NO_COLUMN,
    y: (at) => rowAt(rows, at) * ROW + ROW / 2,
  };
  const height = rows.length * ROW;
  // Where rows have become fewer, the browser has not scrolled back yet.
  const top = Math.max(0, Math.min(sight.top, height + ROW - sight.height));
  const first = Math.max(0, Math.floor(top / ROW) - MARGIN);
  const end = Math.min(rows.length, Math.ceil((top + sight.height) / ROW) + MARGIN);
  const [firstAt, endAt] = [rows[first] ?? 0, (rows[end - 1] ?? 0) + 1];
  const visible = rows.slice(first, end);
  const isSeen = (from: number, to: number): boolean => from < endAt && to >= firstAt;
  const hasLane = (at: number): boolean => columns.has(trace.steps[at]?.task ?? -1);
  const shownRows = new Set(visible);
  const isRow = (at: number): boolean => rows[rowAt(rows, at)] === at;

  return (
    <div class="lanes" ref={scroller} onScroll={look} tabIndex={0} role="group" aria-label="steps by task">
      <div class="heads" style={{ width: `${total}px` }}>
        <span style={{ width: `${GUTTER}px` }}>step, ns</span>
        {lanes.map(({ task, name, isProgram }) => (
          <span
            key={task}
            class={isProgram ? '' : 'hardware'}
            style={{ width: `${place.column(task).width}px` }}
            title={name}
          >
            {name}
          </span>
        ))}
      </div>
      <svg width={total} height={height + ROW}>
        <defs>
          {['wake', 'start', 'hand-over'].map((kind) => (
            <marker
              key={kind}
              id={`head-${kind}`}
              viewBox="0 0 8 8"
              refX="7"
              refY="4"
              markerWidth="7"
              markerHeight="7"
              orient="auto"
            >
              <path d="M0 0L8 4L0 8Z" class={kind} />
            </marker>
          ))}
        </defs>
        <rect class="cursor-row" x={0} y={cursorRow * ROW} width={total} height={ROW} />
        {lanes.map(({ task }) => (
          <Life key={task} task={task} {...{ trace, place, firstAt, endAt }} />
        ))}
        {bars
          .filter(({ from, to, task }) => columns.has(task) && isSeen(from, to ?? Infinity))
          .map((bar) => (
            <Bar
              key={`${bar.lock}/${bar.from}`}
              {...{ bar, trace, place }}
              tag={tags[bar.lock] ?? ''}
              isChosen={bar.lock === lock}
              bottom={height}
              sightTop={sight.top}
            />
          ))}
        {arrows
          .filter(({ from, to }) => isSeen(from, to) && hasLane(from) && hasLane(to))
          .filter(({ from, to }) => isRow(from) && isRow(to))
          .map((arrow) => (
            <path
              key={`${arrow.kind}/${arrow.from}/${arrow.to}`}
              class={`arrow ${arrow.kind} ${arrow.from === cursor || arrow.to === cursor ? 'near' : ''}`}
              d={curve(place, trace, arrow)}
              marker-end={`url(#head-${arrow.kind})`}
            />
          ))}
        {race.pairs
          .map(({ first: a, second: b }) => ({ kind: 'wake' as const, from: a.at, to: b.at }))
          .filter(({ from, to }) => isSeen(from, to) && hasLane(from) && hasLane(to))
          .map((arrow, i) => (
            <path key={i} class="race-line" d={curve(place, trace, arrow)} />
          ))}
        {visible.map((at) => {
          const step = trace.steps[at];
          if (step === undefined) return <End key={at} {...{ at, place, total, props }} />;
          if (!columns.has(step.task)) return null;
          const before = trace.steps[rows[rowAt(rows, at) - 1] ?? -1];
          return (
            <g key={at}>
              <text class="number" x={34} y={place.y(at) + 4} text-anchor="end">
                {step.index}
              </text>
              {before?.timeNs !== step.timeNs && (
                <text class="time" x={GUTTER - 6} y={place.y(at) + 4} text-anchor="end">
                  {step.timeNs}
                </text>
              )}
              <Block {...{ step, at, place, props }} />
            </g>
          );
        })}
      </svg>
      <p class="unseen" aria-live="polite">
        {describe(trace, cursor, shownRows.has(cursor))}
      </p>
    </div>
  );
}

function describe({ steps, tasks, end }: Trace, cursor: number, isSeen: boolean): string {
  const step = steps[cursor];
  if (step === undefined) return end === undefined ? '' : `failure outside of all steps, ${endText(end)}`;
  const name = tasks.find(({ number }) => number === step.task)?.name ?? '';
  return `step ${step.index}, ${name}, from ${step.from} to ${step.to}${isSeen ? '' : ', out of sight'}`;
}

/** The row of a failure outside of all steps, across the lanes. */
function End({ at, place, total, props }: { at: number; place: Place; total: number; props: LanesProps }) {
  const { trace, cursor, onMove } = props;
  if (trace.end === undefined) return null;
  const y = place.y(at);
  const text = `(${endText(trace.end)})`;
  return (
    <g class={at === cursor ? 'block broken end cursor' : 'block broken end'} onClick={() => onMove(at)}>
      <title>{`${text} ${trace.failure?.message ?? ''}`}</title>
      <text class="time" x={GUTTER - 6} y={y + 4} text-anchor="end">
        {trace.end.timeNs}
      </text>
      <rect x={GUTTER} y={y - BLOCK / 2} width={total - GUTTER - LANE_GAP} height={BLOCK} rx={3} />
      <text x={GUTTER + 5} y={y + 4}>
        <tspan class="sign">✖ </tspan>
        {text}
      </text>
    </g>
  );
}

/** The line between the steps of a task. */
function Life({
  task,
  trace,
  place,
  firstAt,
  endAt,
}: {
  task: number;
  trace: Trace;
  place: Place;
  firstAt: number;
  endAt: number;
}) {
  const x = place.column(task).x + 10;
  const pieces = [];
  let before: number | undefined;
  for (const [at, step] of trace.steps.entries()) {
    if (step.task !== task) continue;
    if (before !== undefined && at >= firstAt && before < endAt) {
      const to = trace.steps[before]?.to ?? '';
      const isParked = to === 'time' || to.startsWith('waits for');
      pieces.push(
        <line key={at} class={isParked ? 'life parked' : 'life'} x1={x} x2={x} y1={place.y(before)} y2={place.y(at)} />,
      );
    }
    if (at >= endAt && before !== undefined && before >= endAt) break;
    before = at;
  }
  return <>{pieces}</>;
}

function Bar({
  bar,
  tag,
  trace,
  place,
  isChosen,
  bottom,
  sightTop,
}: {
  bar: HoldBar;
  tag: string;
  trace: Trace;
  place: Place;
  isChosen: boolean;
  /** Where the rows end: a lock that is never given back is held until there. */
  bottom: number;
  /** What is above is out of sight: a bar that began there says here what it is. */
  sightTop: number;
}) {
  const label = trace.locks[bar.lock]?.label ?? '';
  const { x: left, blockWidth } = place.column(bar.task);
  const x = left + blockWidth + 3 + Math.min(bar.depth, MOST_BARS - 1) * BAR_PITCH;
  const top = place.y(bar.from) - BLOCK / 2;
  const end = bar.to === undefined ? bottom - (ROW - BLOCK) / 2 : place.y(bar.to) + BLOCK / 2;
  const colour = lockColour(bar.lock);
  return (
    <g class={`hold${isChosen ? ' chosen' : ''}${bar.shared ? ' shared' : ''}`}>
      <title>{`${tag} ${label}${bar.shared ? ', for reading' : ''}`}</title>
      <rect
        x={x}
        y={top}
        width={BAR}
        height={Math.max(4, end - top)}
        fill={bar.shared ? 'var(--ground)' : colour}
        stroke={colour}
      />
      {bar.depth < MOST_BARS && (
        <text
          class="lock-number"
          x={x + BAR / 2}
          y={Math.min(Math.max(top, sightTop), end - BLOCK) + 12}
          text-anchor="middle"
        >
          {tag}
        </text>
      )}
    </g>
  );
}
