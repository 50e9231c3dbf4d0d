/**
 * Shrinking: the smallest scenario and schedule that still fail for the same reason.
 *
 * First the scenario, as its file's text: steps, calls, tasks, hosts and optional fields are left out, lengths made a page. What is left must
 * fail with the same signature, under the same schedule or one that a short exploration finds. Then the schedule: as few
 * deviations from the default as will do, each as early as it can be. The result is a scenario file that holds its
 * schedule as choices, so that it says the same on any later version that still has the tasks.
 *
 * Source: Zeller, Hildebrandt 2002 (ddmin); dejafu's order of what to shrink.
 */
import { isAlias, isMap, isScalar, isSeq, parseDocument, visit, type Document, type Node } from 'yaml';
import { isHeldBack, namesSomebody, TIME, type Deviation, type HeldBack } from '../runtime/deviations.js';
import { DEFAULT_SEED, isOfMain, loadScenario, type Scenario } from '../scenario/load.js';
import { fileText } from '../scenario/relocate.js';
import { InputError } from '../scenario/text.js';
import { BoundedSearch, isPruned } from './exhaustive.js';
import { goesOn } from './between-runs.js';
import { countDeviations, deviating, record, type Deviations } from './record.js';
import { scheduleOf } from './strategies.js';
import { KERNEL_NODE, subjectOf, type Attempt, type Subject } from './subject.js';
import { isUnexpectedAnswer } from './trace.js';

/** A failing case. */
export interface FailingCase {
  readonly file: string;
  /** The scenario's text, with the faults that it needs in it. */
  readonly text: string;
  readonly seed: number;
  readonly signature: string;
  readonly deviations: Deviations;
}

/** What became of it. */
export interface Shrunk {
  /** A scenario file that fails as it says. */
  readonly text: string;
  readonly scenario: Scenario;
  readonly deviations: Deviations;
  readonly attempt: Attempt;
  /** Runs that shrinking took. */
  readonly attempts: number;
  /** It was told to end before it had. */
  readonly isInterrupted: boolean;
}

/** How much to try. */
export interface ShrinkBudget {
  /** Runs in all. */
  readonly attempts: number;
  /** Schedules tried for each smaller scenario that does not fail under the known one. */
  readonly schedules: number;
}

/** Who looks on while a case is made small. */
export interface ShrinkWatch {
  /** Is told how many runs that has taken. */
  readonly onProgress?: (attempts: number) => void;
  /** Ends shrinking with what it has. */
  readonly signal?: AbortSignal;
}

type Path = readonly (string | number)[];

/** Lists whose items are steps or calls, and mappings whose entries can be spared. */
const SPARED = new Set([
  'steps',
  'parallel',
  'setup',
  'tasks',
  'calls',
  'hosts',
  'guests',
  'processes',
  'buffers',
  'files',
  'links',
]);
/** What a file is about is kept. */
const KEPT = new Set(['title', 'covers', 'kernel-only', 'faults', 'fails', 'fails-with', 'schedule', 'seed', 'limit']);

/** Paths of what might be left out: whole entries first, deepest and last first among those. */
function removable(document: Document): Path[] {
  const whole: Path[] = [];
  const details: Path[] = [];
  const look = (node: Node | null | undefined, path: Path, isSpared: boolean): void => {
    if (isMap(node)) {
      for (const { key, value } of node.items) {
        const name = isScalar(key) ? String(key.value) : '';
        if (path.length === 0 && KEPT.has(name)) continue;
        const at = [...path, name];
        if (path.length > 0) (isSpared ? whole : details).push(at);
        look(value as Node | null, at, SPARED.has(name));
      }
    } else if (isSeq(node)) {
      node.items.forEach((item, index) => {
        const at = [...path, index];
        (isSpared || path.some((step) => SPARED.has(String(step))) ? whole : details).push(at);
        look(item as Node, at, false);
      });
    }
  };
  look(document.contents, [], false);
  return [...whole.reverse(), ...details.reverse()];
}

/** Paths of lengths that are more than a page, and the shorter ones to try for each: a page, two, four, …; of whole hosts, whose runs take long, a page. */
function lengths(document: Document): { readonly path: Path; readonly shorter: readonly string[] }[] {
  const found: { readonly path: Path; readonly shorter: readonly string[] }[] = [];
  const tries = document.hasIn(['kernel-only']) ? 8 : 1;
  const look = (node: Node | null | undefined, path: Path): void => {
    if (isMap(node))
      for (const { key, value } of node.items) look(value as Node, [...path, isScalar(key) ? String(key.value) : '']);
    else if (isSeq(node)) node.items.forEach((item, i) => look(item as Node, [...path, i]));
    else if (isScalar(node) && typeof node.value === 'string') {
      const [, count, unit] = /^(\d+) ([KMGT])iB$/.exec(node.value) ?? [];
      const kib = Number(count) * 1024 ** 'KMGT'.indexOf(unit ?? 'K');
      const shorter = Array.from({ length: tries }, (_, i) => PAGE_KIB * 2 ** i).filter((size) => size < kib);
      if (shorter.length > 0) found.push({ path, shorter: shorter.map((size) => `${size} KiB`) });
    }
  };
  look(document.contents, []);
  return found;
}

const PAGE_KIB = 4;
/** A schedule with so few deviations can be read; for a longer one another is looked for, in so many runs, and so many that fail are made smaller. */
const READABLE = 3;
const SHORTER_RUNS = 1000;
const SHORTER_TRIES = 8;
/** The fewest pre-emptions are looked for up to here, in so many runs for each number of them. */
const FEW_PREEMPTIONS = 2;
const SEARCHED_RUNS = 600;

/** A call that is left out had so many choices, at most, for the schedule to be tried without them. */
const MOVED_CHOICES = 4;

/** A deviation so many choices earlier; none where it would begin before the run, what is left of it where it holds a task back. */
function earlier(one: Deviation, by: number): Deviation[] {
  if (!isHeldBack(one)) return one.at < by ? [] : [{ ...one, at: one.at - by }];
  return one.until <= by ? [] : [{ ...one, at: Math.max(0, one.at - by), until: one.until - by }];
}

/** The document, aliases written out: what they stand for may go. */
function parse(text: string): Document {
  const document = parseDocument(text, { intAsBigInt: true });
  visit(document, { Alias: (_, alias) => alias.resolve(document)?.clone() as Node | undefined });
  visit(document, {
    Node: (_, node) => {
      if (!isAlias(node)) delete node.anchor;
    },
  });
  return document;
}

/** Without those that name tasks of the program that have been left out. */
function ofTasks({ scenario }: Subject, deviations: Deviations): Deviations {
  const names = scenario.kernelOnly?.program.tasks.map(({ name }) => name);
  if (names === undefined) return deviations;
  const lists = Object.entries(deviations);
  return Object.fromEntries(lists.map(([node, list]) => [node, list.filter((one) => namesSomebody(one, names))]));
}

/** A file's own schedule is not looked at, and would name tasks that are left out. */
function withoutSchedule(text: string): string {
  const document = parse(text);
  return document.deleteIn(['schedule']) ? String(document) : text;
}

class Shrinker {
  readonly #case: FailingCase;
  readonly #budget: ShrinkBudget;
  readonly #watch: ShrinkWatch;
  attempts = 0;
  /** Whether there was anything to choose in the last run. */
  #hadChoices = true;
  text: string;
  deviations: Deviations;
  attempt: Attempt | undefined;
  /** What a scenario expects may be wrong once a step is left out; a race is what passes while nobody is pre-empted. */
  #mustHoldInOrder = false;
  /** Calls that stay: those of a task that got an unexpected answer, for what they did before is what it expected the answer by. */
  #kept: Path = [];

  /** Schedules tried for each smaller scenario now: none any more once the schedule is being made small. */
  #samples: number;

  constructor(failing: FailingCase, budget: ShrinkBudget, watch: ShrinkWatch) {
    this.#case = failing;
    this.#budget = budget;
    this.#samples = budget.schedules;
    this.#watch = watch;
    this.text = withoutSchedule(failing.text);
    this.deviations = failing.deviations;
  }

  async #count({ isKernelOnly }: Subject): Promise<void> {
    this.attempts++;
    this.#watch.onProgress?.(this.attempts);
    if (this.attempts % 64 === 0 || !isKernelOnly) await goesOn(this.#watch.signal);
  }

  get #isSpent(): boolean {
    return this.attempts >= this.#budget.attempts || this.#watch.signal?.aborted === true;
  }

  #subject(text: string): Subject | undefined {
    try {
      return subjectOf(loadScenario(this.#case.file, text), this.#case.seed);
    } catch (error) {
      if (error instanceof InputError) return undefined;
      throw error;
    }
  }

  /** Whether a run under these deviations fails as the case does; then they are noted as they really were. */
  async #fails(subject: Subject, deviations: Deviations): Promise<Deviations | undefined> {
    await this.#count(subject);
    const ran = await record(subject, this.#case.seed, deviating(deviations));
    this.#hadChoices = Object.values(ran.attempt.choices).some(({ length }) => length > 0);
    if (ran.attempt.failure?.signature !== this.#case.signature) return undefined;
    this.attempt = ran.attempt;
    // Written down choice by choice, a task that is held back is many switches again.
    return Object.values(deviations).some((list) => list.some(isHeldBack))
      ? ofTasks(subject, deviations)
      : ran.deviations;
  }

  /** A schedule under which a smaller scenario still fails: the known one, or one that is found. */
  async #failing(text: string): Promise<Deviations | undefined> {
    const subject = this.#subject(text);
    if (subject === undefined) return undefined;
    if (this.#mustHoldInOrder && !(await this.#holdsInOrder(subject))) return undefined;
    const known = await this.#fails(subject, this.deviations);
    // Where there was nothing to choose, no other schedule is another run.
    if (known !== undefined || !this.#hadChoices) return known;
    const deviations = this.#of(KERNEL_NODE);
    // What was left out took its choices along: those behind it come earlier.
    for (let by = 1; by <= MOVED_CHOICES && subject.isKernelOnly && deviations.length > 0 && !this.#isSpent; by++) {
      const moved = await this.#fails(subject, { [KERNEL_NODE]: deviations.flatMap((one) => earlier(one, by)) });
      if (moved !== undefined) return moved;
    }
    for (let index = 0; index < this.#samples && !this.#isSpent; index++) {
      const deviations = await this.#sampled(subject, index);
      if (deviations !== undefined) return await this.#fails(subject, deviations);
    }
    return undefined;
  }

  /** The `index`-th schedule of an exploration, if the subject fails under it as the case does. */
  async #sampled(subject: Subject, index: number): Promise<Deviations | undefined> {
    await this.#count(subject);
    const choices = Math.max(1, this.attempt?.choices[KERNEL_NODE]?.length ?? 64);
    const sampling = { strategy: 'portfolio', seed: this.#case.seed, depth: 3, choices } as const;
    const ran = await subject.attempt({ scheduleOf: () => scheduleOf(sampling, index) });
    if (ran.failure?.signature !== this.#case.signature) return undefined;
    await this.#count(subject);
    return (await record(subject, this.#case.seed, () => scheduleOf(sampling, index))).deviations;
  }

  async #tryText(text: string): Promise<boolean> {
    const deviations = await this.#failing(text);
    if (deviations === undefined) return false;
    this.text = text;
    this.deviations = deviations;
    return true;
  }

  /** The case as it is. */
  async begin(): Promise<void> {
    await this.#tryText(this.text);
    const subject = this.#subject(this.text);
    const failure = this.attempt?.failure;
    if (subject === undefined || failure?.id !== undefined) return;
    this.#mustHoldInOrder = await this.#holdsInOrder(subject);
    if (this.#mustHoldInOrder && failure !== undefined && isUnexpectedAnswer(failure))
      await this.#keepCallsOf(failure.task);
  }

  /** Leaves out what a task has to do after it has failed; the rest stays. */
  async #keepCallsOf(task: string): Promise<void> {
    const path = parse(this.text).hasIn(['tasks', task, 'calls']) ? ['tasks', task, 'calls'] : ['tasks', task];
    for (;;) {
      const document = parse(this.text);
      const calls = document.getIn(path);
      if (!isSeq(calls) || calls.items.length < 2) break;
      calls.items.pop();
      if (this.#isSpent || !(await this.#tryText(String(document)))) break;
    }
    this.#kept = path;
  }

  async #holdsInOrder(subject: Subject): Promise<boolean> {
    await this.#count(subject);
    return (await subject.attempt({ scheduleOf: deviating({}) })).failure === undefined;
  }

  /** Leaves out what can be left out, until nothing more can. */
  async shrinkText(): Promise<void> {
    while ((await this.#leaveOut()) || (await this.#takeApart()));
    for (const { path, shorter } of lengths(parse(this.text))) {
      for (const length of shorter) {
        if (this.#isSpent) return;
        if (await this.#tryText(this.#withLength(path, length))) break;
      }
    }
  }

  #withLength(path: Path, length: string): string {
    const document = parse(this.text);
    document.setIn(path, length);
    return String(document);
  }

  /** One pass over everything that might be left out; whether something was. */
  async #leaveOut(): Promise<boolean> {
    const before = this.text;
    for (const path of removable(parse(before))) {
      if (this.#isSpent) return false;
      const document = parse(this.text);
      if (!document.hasIn(path) || this.#isKept(path)) continue;
      document.deleteIn(path);
      await this.#tryText(String(document));
    }
    return this.text !== before;
  }

  /** Steps one after the other instead of side by side, where that will do; whether there were some. */
  async #takeApart(): Promise<boolean> {
    const before = this.text;
    const { steps } = parse(before).toJS() as { readonly steps?: readonly unknown[] };
    for (let index = (steps?.length ?? 0) - 1; index >= 0 && !this.#isSpent; index--) {
      const document = parse(this.text);
      const branches = document.getIn(['steps', index, 'parallel']);
      const all = document.getIn(['steps']);
      if (!isSeq(branches) || !isSeq(all)) continue;
      all.items.splice(index, 1, ...branches.items.flatMap((branch) => (isSeq(branch) ? branch.items : [])));
      await this.#tryText(String(document));
    }
    return this.text !== before;
  }

  #isKept(path: Path): boolean {
    return this.#kept.length > 0 && this.#kept.every((step, i) => path[i] === step);
  }

  async #tryDeviations(subject: Subject, deviations: Deviations): Promise<boolean> {
    if (this.#isSpent) return false;
    const now = await this.#fails(subject, deviations);
    if (now === undefined || countDeviations(now) > countDeviations(deviations)) return false;
    this.deviations = now;
    return true;
  }

  /** Fewer deviations, each as early as it can be; from another schedule where that one stays long, as those of tasks that poll do. */
  async shrinkSchedule(): Promise<void> {
    await this.#settle();
    const subject = this.#subject(this.text);
    if (subject === undefined) return;
    if (!subject.isKernelOnly) {
      if (await this.#searchSingle(subject)) await this.shrinkText();
      return;
    }
    await this.#searchFewest(subject);
    await this.#searchShorter(subject);
    await this.#settle();
  }

  /** A shorter schedule fits a smaller scenario, which may do with a shorter schedule: both in turn until neither changes. */
  async #settle(): Promise<void> {
    this.#samples = 0;
    for (let before = ''; before !== this.text && !this.#isSpent;) {
      const subject = this.#subject(this.text);
      if (subject === undefined) return;
      await this.#simpler(subject);
      before = this.text;
      if (subject.isKernelOnly) await this.shrinkText();
    }
  }

  /** Looks for another schedule that fails and can be made shorter than the one there is. */
  async #searchShorter(subject: Subject): Promise<void> {
    let tried = 0;
    for (let index = 0; index < SHORTER_RUNS && tried < SHORTER_TRIES; index++) {
      if (this.#isSpent || countDeviations(this.deviations) <= READABLE) return;
      const { deviations, attempt } = this;
      const sampled = await this.#sampled(subject, index);
      const found = sampled && (await this.#fails(subject, sampled));
      if (found === undefined) continue;
      tried++;
      this.deviations = found;
      await this.#simpler(subject);
      if (countDeviations(this.deviations) >= countDeviations(deviations))
        [this.deviations, this.attempt] = [deviations, attempt];
    }
  }

  /** Fewer deviations, and of a kernel-only machine tasks held back, until nothing more can be left out. */
  async #simpler(subject: Subject): Promise<void> {
    do await this.#fewer(subject);
    while (subject.isKernelOnly && ((await this.#holdBack(subject)) || (await this.#holdOn(subject))));
    await this.#shortenHolds(subject);
  }

  /** Tasks that are held back are let go as soon as will do. */
  async #shortenHolds(subject: Subject): Promise<void> {
    for (const [i, one] of this.#of(KERNEL_NODE).entries()) {
      if (!isHeldBack(one)) continue;
      const tryHold = async (until: number): Promise<boolean> => {
        const list = this.#of(KERNEL_NODE).map((other, j) => (j === i ? { ...other, until } : other));
        return await this.#tryDeviations(subject, { [KERNEL_NODE]: list });
      };
      // Behind the end of the run there is nothing to hold back.
      const end = Math.min(one.until, (this.attempt?.choices[KERNEL_NODE]?.length ?? one.until) + 1);
      let enough = end;
      for (let less = one.at; enough - less > 1;) {
        const until = (less + enough) >> 1;
        if (await tryHold(until)) enough = until;
        else less = until;
      }
      if (enough === end && end < one.until) await tryHold(end);
    }
  }

  /** One task held back once instead of twice with a pause; whether there was one. */
  async #holdOn(subject: Subject): Promise<boolean> {
    const all = this.#of(KERNEL_NODE);
    for (const one of all.filter(isHeldBack)) {
      const next = all.find(
        (other): other is HeldBack => isHeldBack(other) && other.hold === one.hold && other.at > one.at,
      );
      if (next === undefined) continue;
      const rest = all.filter((other) => other !== one && other !== next);
      const both = { ...one, until: Math.max(one.until, next.until) };
      const list = [...rest, both].sort((a, b) => a.at - b.at);
      if (await this.#tryDeviations(subject, { [KERNEL_NODE]: list })) return true;
    }
    return false;
  }

  /** One task held back instead of many switches away from it; whether there was one. */
  async #holdBack(subject: Subject): Promise<boolean> {
    if (this.#isSpent) return false;
    await this.#count(subject);
    const { switches, attempt } = await record(subject, this.#case.seed, deviating(this.deviations));
    const away = new Map<string, number[]>();
    for (const { at, instead } of switches[KERNEL_NODE] ?? [])
      if (instead !== TIME) away.set(instead, [...(away.get(instead) ?? []), at]);
    const byCount = [...away].sort(([, a], [, b]) => b.length - a.length);
    const end = attempt.choices[KERNEL_NODE]?.length ?? 0;
    for (const [hold, places] of byCount) if (await this.#holdBetween(subject, hold, [...places, end])) return true;
    return false;
  }

  /** Holds a task back between two of its places, the last of them the end of the run, and keeps what is outside. */
  async #holdBetween(subject: Subject, hold: string, places: readonly number[]): Promise<boolean> {
    const all = this.#of(KERNEL_NODE);
    for (const [first, at] of places.entries()) {
      for (let last = places.length - 1; last > first; last = first + Math.floor((last - first) / 2)) {
        const until = (places[last] ?? at) + 1;
        const kept = all.filter((one) => one.at < at || one.at >= until);
        if (kept.length + 1 >= all.length) continue;
        const held = [...kept, { at, until, hold }].sort((a, b) => a.at - b.at);
        if (await this.#tryDeviations(subject, { [KERNEL_NODE]: held })) return true;
      }
    }
    return false;
  }

  /** A single switch of whole hosts, wherever in the run, to one of the tasks that many switches go to; whether there is one. */
  async #searchSingle(subject: Subject): Promise<boolean> {
    if (countDeviations(this.deviations) < 2) return false;
    const choices = this.attempt?.choices ?? {};
    for (const [node, list] of Object.entries(this.deviations)) {
      const tasks = list.flatMap((one) => (isHeldBack(one) || one.to === TIME ? [] : [one.to]));
      for (const to of new Set(tasks.reverse()))
        for (let at = 0; at < (choices[node]?.length ?? 0) && !this.#isSpent; at++)
          if (await this.#tryDeviations(subject, { [node]: [{ at, to }] })) return true;
    }
    return false;
  }

  /** Every order of few pre-emptions, from none on: the first that fails has the fewest there are, but for those that wait for time. */
  async #searchFewest(subject: Subject): Promise<void> {
    for (let preemptions = 0; preemptions <= FEW_PREEMPTIONS; preemptions++) {
      if (countDeviations(this.deviations) <= preemptions) return;
      const search = new BoundedSearch(preemptions);
      for (let runs = 0; runs < SEARCHED_RUNS && !search.isDone && !this.#isSpent; runs++) {
        await this.#count(subject);
        const { failure, choices } = await subject.attempt({ scheduleOf: search.next() });
        search.ended(isPruned(failure?.message ?? ''));
        if (failure?.signature !== this.#case.signature) continue;
        const schedule = { strategy: 'recorded', of: 'explored', choices: choices[KERNEL_NODE] ?? [] } as const;
        await this.#count(subject);
        const { deviations } = await record(subject, this.#case.seed, () => schedule);
        if (countDeviations(deviations) >= countDeviations(this.deviations)) continue;
        await this.#tryDeviations(subject, deviations);
        await this.#fewer(subject);
        return;
      }
      if (search.isDone && !search.report().isBounded) return;
    }
  }

  /** Fewer deviations: halves, quarters, … of each node's list are left out, at last single ones; of several nodes first whole lists. */
  async #fewer(subject: Subject): Promise<void> {
    const nodes = Object.keys(this.deviations);
    let sizes = nodes.map((node) => Math.ceil(this.#of(node).length / (nodes.length > 1 ? 1 : 2)));
    while (sizes.some((size) => size > 0)) {
      for (const [i, node] of nodes.entries()) await this.#fewerBy(subject, node, sizes[i] ?? 0);
      sizes = sizes.map((size) => (size === 1 ? 0 : Math.ceil(size / 2)));
    }
    // Runs of whole hosts take too long to be spent on that.
    if (subject.isKernelOnly) await this.#moveEarlier(subject, KERNEL_NODE);
  }

  /** Leaves out `size` deviations of a node at a time, the last ones first. */
  async #fewerBy(subject: Subject, node: string, size: number): Promise<void> {
    for (let at = this.#of(node).length - size; size > 0 && at > -size;) {
      const from = Math.max(0, at);
      const kept = this.#of(node).filter((_, i) => i < from || i >= from + size);
      const isGone = await this.#tryDeviations(subject, { ...this.deviations, [node]: kept });
      at = isGone ? Math.min(at, this.#of(node).length) - size : at - size;
    }
  }

  async #moveEarlier(subject: Subject, node: string): Promise<void> {
    for (let i = 0; i < this.#of(node).length; i++) {
      const list = this.#of(node);
      const deviation = list[i];
      const least = (list[i - 1]?.at ?? -1) + 1;
      if (deviation === undefined) return;
      if (isHeldBack(deviation)) continue;
      for (let at = least; at < deviation.at && !this.#isSpent; at++) {
        const moved = list.map((other, j) => (j === i ? { ...other, at } : other));
        if (await this.#tryDeviations(subject, { ...this.deviations, [node]: moved })) break;
      }
    }
  }

  #of(node: string): readonly Deviation[] {
    return this.deviations[node] ?? [];
  }
}

/** The text of a scenario file with a schedule, the seed it is of and the failure it must end in. */
export function withSchedule(text: string, deviations: Deviations, seed: number, signature: string): string {
  const document = parse(text);
  for (const key of ['schedule', 'seed']) document.deleteIn([key]);
  const isKernelOnly = document.hasIn(['kernel-only']);
  // A file without a seed takes that of the command; of programs nothing but the schedule is random.
  if (seed !== DEFAULT_SEED || !isKernelOnly) document.set('seed', seed);
  const lists = Object.entries(deviations).filter(([, list]) => list.length > 0);
  const value = isKernelOnly ? deviations[KERNEL_NODE] : Object.fromEntries(lists);
  if (lists.length > 0 || !isKernelOnly) {
    const schedule = document.createNode(value);
    document.set('schedule', schedule);
    for (const [, list] of lists)
      for (let i = 0; i < list.length; i++) {
        const item: unknown = isKernelOnly ? document.getIn(['schedule', i]) : undefined;
        if (isMap(item)) item.flow = true;
      }
  }
  document.set('fails', signature);
  return fileText(document);
}

/** The text of a scenario file with the fault it names under `fails-with` switched on in every run. */
function withFault(scenario: Scenario): string {
  const { failsWith, text, kernelOnly, hosts } = scenario;
  if (failsWith === undefined || failsWith === 'no-faults' || 'memory' in failsWith) return text;
  const document = parse(text);
  document.deleteIn(['fails-with']);
  const { host, ...armed } = failsWith;
  if (kernelOnly !== undefined) {
    const faults: unknown = document.getIn(['faults']);
    document.set('faults', document.createNode([...(isSeq(faults) ? faults.items : []), armed]));
    return String(document);
  }
  const steps: unknown = document.getIn(['steps']);
  const names = isOfMain(armed.fault) ? [undefined] : host === undefined ? hosts.map(({ name }) => name) : [host];
  const arming = names.map((name) =>
    document.createNode({ fault: { ...(name === undefined ? {} : { host: name }), ...armed } }),
  );
  if (isSeq(steps)) steps.items.unshift(...arming);
  return String(document);
}

/** A scenario with the fault it names under `fails-with` switched on. */
export function faulty(scenario: Scenario): Scenario {
  return loadScenario(scenario.file, withFault(scenario));
}

/** Shrinks a failing case; undefined when it does not fail again to begin with. */
export async function shrink(
  failing: FailingCase,
  budget: ShrinkBudget,
  watch: ShrinkWatch = {},
): Promise<Shrunk | undefined> {
  const shrinker = new Shrinker(failing, budget, watch);
  await shrinker.begin();
  await shrinker.shrinkText();
  await shrinker.shrinkSchedule();
  const { attempt } = shrinker;
  if (attempt === undefined) return undefined;
  const text = withSchedule(shrinker.text, shrinker.deviations, failing.seed, failing.signature);
  return {
    text,
    scenario: loadScenario(failing.file, text),
    deviations: shrinker.deviations,
    attempt,
    attempts: shrinker.attempts,
    isInterrupted: watch.signal?.aborted === true,
  };
}
