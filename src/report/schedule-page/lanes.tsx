/**
 * The lanes: a column a task, a row a step, from top to bottom.
 *
 * Only the rows in sight are drawn, so four thousand steps cost what forty do. A block says from which gate its task went on; a line joins
 * the steps of a task, dotted while it waits. Beside it are the locks it holds, by number.
 */
import { useEffect, useRef, useState } from 'preact/hooks';
import type { Race } from '../../explore/race.js';
import type { Trace, TraceStep } from '../../explore/trace.js';
import { isDeviation, rowAt, touch, type Arrow, type HoldBar, type Lane } from './model.js';

const ROW = 22;
const BLOCK = 18;
const GUTTER = 92;
const BAR = 6;
const MIN_LANE = 118;
const LETTER = 7.3;
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

interface Place {
  readonly x: (task: number) => number;
  readonly width: number;
  readonly barRoom: number;
  /** Middle of the row of a step, or of where it would be. */
  readonly y: (at: number) => number;
}

/** By class; a class also has a number. */
const LOCK_COLOURS = ['--blue', '--green', '--purple', '--orange', '--sky', '--faint'];

/** Number of a lock's class among those of the trace, from 1. */
function classNumber(trace: Trace, lockClass: string): number {
  return lockClasses(trace).indexOf(lockClass) + 1;
}

/** Classes of the locks of a trace, in the order of their numbers. */
export function lockClasses({ locks }: Trace): string[] {
  return [...new Set(locks.map(({ lockClass }) => lockClass))];
}

export function lockColour(trace: Trace, lockClass: string): string {
  return `var(${LOCK_COLOURS[(classNumber(trace, lockClass) - 1) % LOCK_COLOURS.length] ?? '--faint'})`;
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
  const x = place.x(step.task);
  const y = place.y(at) - BLOCK / 2;
  const width = place.width - place.barRoom - 14;
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

/** A gate says what comes next; having waited for time says nothing, so it is where the step got to. */
function blockText({ from, to }: TraceStep): string {
  if (from !== 'time' && from !== 'waiting') return from;
  return to === 'time' ? '…' : `→ ${to.replace('waits for ', '')}`;
}

function curve(place: Place, trace: Trace, { from, to }: Arrow): string {
  const [a, b] = [trace.steps[from], trace.steps[to]];
  if (a === undefined || b === undefined) return '';
  const goesRight = place.x(b.task) > place.x(a.task);
  const width = place.width - place.barRoom - 14;
  const x1 = place.x(a.task) + (goesRight ? width : 0);
  const x2 = place.x(b.task) + (goesRight ? 0 : width);
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

  const barRoom = Math.min(4, Math.max(0, ...bars.map(({ depth }) => depth + 1))) * (BAR + 2) + 4;
  const width = Math.max(MIN_LANE + barRoom, (sight.width - GUTTER) / Math.max(1, lanes.length));
  const columns = new Map(lanes.map(({ task }, i) => [task, GUTTER + i * width]));
  const place: Place = {
    x: (task) => columns.get(task) ?? 0,
    width,
    barRoom,
    y: (at) => rowAt(rows, at) * ROW + ROW / 2,
  };
  const first = Math.max(0, Math.floor(sight.top / ROW) - MARGIN);
  const end = Math.min(rows.length, Math.ceil((sight.top + sight.height) / ROW) + MARGIN);
  const [firstAt, endAt] = [rows[first] ?? 0, (rows[end - 1] ?? 0) + 1];
  const visible = rows.slice(first, end);
  const isSeen = (from: number, to: number): boolean => from < endAt && to >= firstAt;
  const hasLane = (at: number): boolean => columns.has(trace.steps[at]?.task ?? -1);
  const shownRows = new Set(visible);
  const isRow = (at: number): boolean => rows[rowAt(rows, at)] === at;
  const height = rows.length * ROW + ROW;

  return (
    <div class="lanes" ref={scroller} onScroll={look} tabIndex={0} role="group" aria-label="steps by task">
      <div class="heads" style={{ width: `${GUTTER + lanes.length * width}px` }}>
        <span style={{ width: `${GUTTER}px` }}>step, ns</span>
        {lanes.map(({ task, name, isProgram }) => (
          <span key={task} class={isProgram ? '' : 'hardware'} style={{ width: `${width}px` }} title={name}>
            {name}
          </span>
        ))}
      </div>
      <svg width={GUTTER + lanes.length * width} height={height}>
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
        <rect class="cursor-row" x={0} y={cursorRow * ROW} width={GUTTER + lanes.length * width} height={ROW} />
        {lanes.map(({ task }) => (
          <Life key={task} task={task} {...{ trace, place, firstAt, endAt }} />
        ))}
        {bars
          .filter(({ from, to, task }) => columns.has(task) && isSeen(from, to ?? Infinity))
          .map((bar) => (
            <Bar
              key={`${bar.lock}/${bar.from}`}
              {...{ bar, trace, place }}
              isChosen={bar.lock === lock}
              bottom={height}
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
          if (step === undefined || !columns.has(step.task)) return null;
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

function describe({ steps, tasks }: Trace, cursor: number, isSeen: boolean): string {
  const step = steps[cursor];
  if (step === undefined) return '';
  const name = tasks.find(({ number }) => number === step.task)?.name ?? '';
  return `step ${step.index}, ${name}, from ${step.from} to ${step.to}${isSeen ? '' : ', out of sight'}`;
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
  const x = place.x(task) + 10;
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
  trace,
  place,
  isChosen,
  bottom,
}: {
  bar: HoldBar;
  trace: Trace;
  place: Place;
  isChosen: boolean;
  bottom: number;
}) {
  const { label = '', lockClass = '' } = trace.locks[bar.lock] ?? {};
  const x = place.x(bar.task) + place.width - place.barRoom - 12 + Math.min(bar.depth, 3) * (BAR + 2);
  const top = place.y(bar.from) - BLOCK / 2;
  const end = bar.to === undefined ? bottom : place.y(bar.to) + BLOCK / 2;
  const colour = lockColour(trace, lockClass);
  return (
    <g class={isChosen ? 'hold chosen' : 'hold'}>
      <title>{`${label}${bar.shared ? ', for reading' : ''}`}</title>
      <text class="lock-number" x={x + BAR / 2} y={top - 1} text-anchor="middle">
        {classNumber(trace, lockClass)}
      </text>
      <rect
        x={x}
        y={top}
        width={BAR}
        height={Math.max(4, end - top)}
        fill={bar.shared ? 'var(--ground)' : colour}
        stroke={colour}
      />
    </g>
  );
}
