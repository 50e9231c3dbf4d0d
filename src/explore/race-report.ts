/**
 * A failed schedule as text, in the manner of the kernel's KCSAN: the rule, the two accesses with what they found and left, the locks
 * each held; then the schedule as its deviations from the default, then the last steps in fixed columns, a task a column. What failed
 * outside of every step has a last line of its own.
 */
import { isHeldBack, TIME, type HeldBack } from '../runtime/deviations.js';
import { INVARIANTS, type InvariantId } from '../runtime/invariants.js';
import { many } from '../scenario/units.js';
import { findRace, type Race, type RaceAccess, type RacePair } from './race.js';
import {
  callsAt,
  endText,
  isDeviating,
  isUnexpectedAnswer,
  wordText,
  type Trace,
  type TraceAccess,
  type TraceChoice,
  type TraceStep,
} from './trace.js';

const BAR = '='.repeat(66);
/** Steps that are printed. */
const LAST_STEPS = 24;
/** Columns of the table of steps. */
const GATE_WIDTH = 30;
const WHAT_WIDTH = 72;

function nameOf(trace: Trace, task: number): string {
  return trace.tasks.find(({ number }) => number === task)?.name ?? String(task);
}

/** `iopt:domains_rwsem(read), iopt:pages_mutex #2`: of several locks of a class with the number of each. */
export function heldText(trace: Trace, { held }: TraceAccess): string {
  const names = held.map((number) => {
    const { lockClass = '', label = '' } = trace.locks[number < 0 ? -1 - number : number] ?? {};
    const name = `${lockClass}${/ #\d+$/.exec(label)?.[0] ?? ''}`;
    return number < 0 ? `${name}(read)` : name;
  });
  return names.length === 0 ? 'no lock' : names.join(', ');
}

/** What an access is called in a sentence. */
const VERBS = { read: 'read of', write: 'write to', update: 'update of', test: 'test of' } as const;

function accessLines(trace: Trace, when: string, { at, access }: RaceAccess): string[] {
  const step = trace.steps[at];
  const word = trace.words[access.word];
  if (step === undefined || word === undefined) return [];
  const ops = callsAt(trace, step).map(({ op }) => op);
  const inCalls = ops.length === 0 ? '' : `, in ${ops.join(' or ')}`;
  const lines = [
    `${when}, at step ${step.index}: ${VERBS[access.kind]} ${wordText(word)} by task "${nameOf(trace, step.task)}" (${step.from})${inCalls}, holding ${heldText(trace, access)}`,
  ];
  const { before, after } = access;
  if (before !== after) lines.push(`  value changed: ${before ?? 'nothing'} -> ${after ?? 'nothing'}`);
  else if (before !== undefined) lines.push(`  value: ${before}`);
  return lines;
}

function pairLines(trace: Trace, pair: RacePair): string[] {
  return [...accessLines(trace, 'later', pair.second), '', ...accessLines(trace, 'earlier', pair.first), ''];
}

function sectionLines(trace: Trace, { sections }: Race): string[] {
  return [
    'Every recorded pair of conflicting accesses is ordered by locks or wake-ups; the order of these critical sections may be what went wrong.',
    'Critical sections, in the order in which they began:',
    ...sections.map(({ lock, task, shared, from, to }) => {
      const { label = '' } = trace.locks[lock] ?? {};
      const end = to === undefined ? 'still held' : `to step ${trace.steps[to]?.index ?? to}`;
      return `  ${nameOf(trace, task).padEnd(16)} ${label}${shared ? '(read)' : ''}: from step ${trace.steps[from]?.index ?? from} ${end}`;
    }),
    '',
  ];
}

/** What is known of why: no more than that. Without an access that could explain it, a list of locks is no explanation either. */
function causeLines(trace: Trace, race: Race): string[] {
  const { failure, steps, omittedSteps } = trace;
  if (failure === undefined || steps.length === 0) return [];
  if (race.pairs.length > 0) return race.pairs.flatMap((pair) => pairLines(trace, pair));
  if (isUnexpectedAnswer(failure)) return [];
  if (omittedSteps === 0 && steps.every(({ task }) => task === steps[0]?.task))
    return ['One task alone: no order of tasks is at fault.', ''];
  if (race.sections.length > 0) return sectionLines(trace, race);
  return ['No pair of accesses to a recorded word explains it; see the steps.', ''];
}

/** Whether a candidate of that name is what `hold` means: of several tasks of one name, all. */
function isCalled(candidate: string, hold: string): boolean {
  return candidate === hold || candidate.startsWith(`${hold}#`);
}

function scheduleLines(trace: Trace): string[] {
  const choices = trace.steps.flatMap(({ choices: made }) => made);
  const count = trace.omittedChoices + choices.length;
  const deviations = [...trace.omittedDeviations, ...choices.filter(isDeviating)];
  if (count === 0) return ['Schedule: no choices', ''];
  const switches = new Set(trace.schedule.filter((one) => !isHeldBack(one)).map(({ at }) => at));
  const holds = trace.schedule.filter(isHeldBack);
  /** What keeps back the task that would have gone on. */
  const holdOf = ({ at, of, default: wanted }: TraceChoice): HeldBack | undefined => {
    if (switches.has(at)) return undefined;
    return holds.find((held) => at >= held.at && at < held.until && isCalled(of[wanted] ?? '', held.hold));
  };
  const lines = [
    ...holds.map((held) => {
      const times = deviations.filter((choice) => holdOf(choice) === held).length;
      const text = `  from choice ${held.at} to ${held.until - 1} task ${held.hold} is held back, ${many(times, 'time')}`;
      return { at: held.at, text };
    }),
    ...deviations
      .filter((choice) => holdOf(choice) === undefined)
      .map(({ at, of, chosen, default: wanted }) => {
        const who = of[chosen] === TIME ? TIME : `task ${of[chosen] ?? ''}`;
        return { at, text: `  at choice ${at} ${who} goes on instead of ${of[wanted] ?? ''}` };
      }),
  ];
  const made = [many(count, 'choice')];
  made.push(
    deviations.length === 0 ? 'each the running task' : `${deviations.length} of them another than the running task`,
  );
  if (lines.length !== deviations.length) made.push(`by ${many(lines.length, 'switch')}`);
  return [`Schedule: ${made.join(', ')}`, ...lines.sort((a, b) => a.at - b.at).map(({ text }) => text), ''];
}

/** The few words on what a step did: how it ended, what it recorded, which locks changed hands, what it wrote. */
export function whatHappened(trace: Trace, step: TraceStep): string {
  const parts: string[] = [];
  if (step.to === 'failure') parts.push('FAILS');
  for (const { op, lock, shared } of step.locks)
    parts.push(`${op === 'acquire' ? '+' : '-'}${trace.locks[lock]?.lockClass ?? ''}${shared ? '(read)' : ''}`);
  for (const line of step.events) parts.push(line.split(' ').slice(3).join(' '));
  for (const number of step.starts) parts.push(`starts ${nameOf(trace, number)}`);
  for (const number of step.wakes) parts.push(`wakes ${nameOf(trace, number)}`);
  for (const { kind, word, before, after } of step.accesses) {
    const named = trace.words[word];
    if (kind !== 'write' || named === undefined || named.field === 'lock' || named.field === 'waiters') continue;
    const change = before === after ? '' : ` ${before ?? '∅'}→${after ?? '∅'}`;
    parts.push(`${wordText(named)}${change}`);
  }
  return parts.join('; ');
}

function cut(text: string, width: number): string {
  return text.length <= width ? text.padEnd(width) : `${text.slice(0, width - 1)}…`;
}

function stepLines(trace: Trace): string[] {
  const { end } = trace;
  if (trace.steps.length === 0)
    return ['No task has made a step.', ...(end === undefined ? [] : [`  X  (${endText(end)})  FAILS`])];
  const steps = trace.steps.slice(-LAST_STEPS);
  const columns = [...new Set(trace.steps.map(({ task }) => task))].sort((a, b) => a - b);
  const legend = columns.map((task, i) => `${i + 1} ${nameOf(trace, task)}`).join(', ');
  const head = `  ${'step'.padStart(6)} ${'time ns'.padStart(10)} ${columns.map((_, i) => String((i + 1) % 10)).join(' ')}  ${cut('from', GATE_WIDTH)} what`;
  return [
    `The last ${steps.length} of ${trace.omittedSteps + trace.steps.length} steps; tasks by column: ${legend}`,
    head,
    ...steps.map((step) => {
      const marks = columns.map((task) => (task !== step.task ? '·' : step.to === 'failure' ? 'X' : '●')).join(' ');
      const what = cut(whatHappened(trace, step), WHAT_WIDTH).trimEnd();
      return `  ${String(step.index).padStart(6)} ${String(step.timeNs).padStart(10)} ${marks}  ${cut(step.from, GATE_WIDTH)} ${what}`.trimEnd();
    }),
    ...(end === undefined
      ? []
      : [
          `  ${'X'.padStart(6)} ${String(end.timeNs).padStart(10)} ${columns.map(() => '·').join(' ')}  ${cut(`(${endText(end)})`, GATE_WIDTH)} FAILS`,
        ]),
  ];
}

/** The report. `race` is that of {@link findRace}, where the caller has it already. */
export function raceReport(trace: Trace, race: Race = findRace(trace)): string {
  const { failure, calls, end } = trace;
  const id = failure?.id;
  const op = end === undefined ? calls.findLast(({ task }) => nameOf(trace, task) === failure?.task)?.op : undefined;
  const place = end === undefined ? (failure?.task ?? '-') : endText(end);
  const rule = id !== undefined && id in INVARIANTS ? [`Rule: ${INVARIANTS[id as InvariantId]}`] : [];
  const lines = [
    BAR,
    `==== BUG: ${id ?? 'failure'} in ${place}${op === undefined ? '' : ` (${op})`}`,
    ...rule,
    failure?.message ?? 'The run did not fail.',
    '',
    ...causeLines(trace, race),
    ...scheduleLines(trace),
    ...stepLines(trace),
    BAR,
  ];
  return `${lines.join('\n')}\n`;
}
