/**
 * Runs a program on a kernel-only machine: setup in order, the tasks as the schedule says, then everything is given back and nothing
 * may be left.
 *
 * A run ends at the first rule that is broken. Its *signature* says which, without numbers and names, so that two runs that failed for the
 * same reason can be told from two that did not.
 */
import { SETUP_TASK } from '../runtime/kernel-only.js';
import { signatureOf, UNEXPECTED_ANSWER } from '../runtime/signature.js';
import { invariant, InvariantError, type Task } from '../runtime/task.js';
import type { FaultId, FaultRule } from '../runtime/faults.js';
import { sharedRead, sharedWrite } from '../runtime/watch.js';
import type { InvariantId, InvariantReport } from '../runtime/invariants.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { RunEvent } from '../runtime/events.js';
import type { SchedulerObserver } from '../runtime/scheduler.js';
import { errnoText } from '../uapi/errno.js';
import { KernelMachine } from './kernel-machine.js';
import { perform, type Caller, type Thing } from './operations.js';
import type { Call, OperationName, Program } from './program.js';

/** Why a run failed. */
export interface ProgramFailure {
  readonly signature: string;
  /** The rule, where it is one of {@link INVARIANTS}. */
  readonly id: InvariantId | undefined;
  readonly message: string;
  readonly stack: string | undefined;
  /** The task that ran, `-` for none. */
  readonly task: string;
  /** Line of the scenario file with the call whose answer was unexpected. */
  readonly line?: number;
}

/** What a call came to. */
export interface CallResult {
  readonly task: string;
  readonly call: Call;
  /** What the system call returned, and in words: `ok` or the error's name. */
  readonly rc: number;
  readonly text: string;
  readonly startNs: number;
  readonly endNs: number;
}

/** A finished run. */
export interface ProgramOutcome {
  readonly failure: ProgramFailure | undefined;
  readonly results: readonly CallResult[];
  /** The schedule of the tasks: indices among candidates. */
  readonly choices: readonly number[];
  /** Tasks that the schedule had to do with, those of the kernel and the hardware included. */
  readonly tasks: number;
  readonly invariants: readonly InvariantReport[];
  readonly events: readonly RunEvent[];
  /** Of everything that can be told at the end: results, and what is mapped. */
  readonly stateHash: number;
  /** Of what devices reach at the end, where the tasks do nothing but plug and unplug: the order should not matter (INV-10). */
  readonly reachHash: number | undefined;
  readonly virtualNs: number;
  /** Frames of kernel memory that are in use when everything was given back. */
  readonly leftover: Readonly<Record<string, number>>;
}

/** How to run. */
export interface RunProgramOptions {
  /**
   * A fault that is armed when the hardware is up, setup included. Then tasks go in turn, each as far as it gets without the next, a call
   * that fails must leave everything as it was, and what calls answer is not held against expectations.
   */
  readonly inject?: { readonly fault: FaultId; readonly rule: FaultRule };
  readonly seed: number;
  readonly schedule: ScheduleSpec;
  /** Whether rules are looked at that cost more than a comparison; false only to measure what they cost. */
  readonly checks?: boolean;
  /** Looks on while the tasks run. */
  readonly observer?: SchedulerObserver;
  /** Is given the machine when setup is done, to look at later. */
  readonly onMachine?: (machine: KernelMachine) => void;
}

/** What may be done in part when it fails (VFIO's unmap leaves the cuts it made, as Linux does), or is more than one system call. */
const PARTIAL: ReadonlySet<OperationName> = new Set(['unmap', 'vfio-unmap', 'unplug', 'dma', 'respond', 'access-rw']);

/** What changes who reaches an address space, and not what is in it. */
const PLUGS: ReadonlySet<OperationName> = new Set(['device', 'replace', 'unplug', 'access', 'access-replace']);

/** An answer that the program did not allow. */
class UnexpectedAnswer extends Error {
  override readonly name = 'UnexpectedAnswer';
  readonly line: number | undefined;

  constructor(message: string, { line }: Call) {
    super(message);
    this.line = line;
  }
}

function nameOf(rc: number): string {
  return rc < 0 ? errnoText(rc) : 'ok';
}

/** What calls have made, by name: a call of one task may need what another's made. */
class Things extends Map<string, Thing> {
  override get(name: string): Thing | undefined {
    sharedRead(this, name);
    return super.get(name);
  }

  override set(name: string, thing: Thing): this {
    sharedWrite(this, name);
    return super.set(name, thing);
  }

  override delete(name: string): boolean {
    sharedWrite(this, name);
    return super.delete(name);
  }
}

class ProgramRun {
  readonly machine: KernelMachine;
  readonly results: CallResult[] = [];
  readonly #program: Program;
  readonly #options: RunProgramOptions;
  readonly #things = new Things();

  constructor(program: Program, options: RunProgramOptions) {
    this.#program = program;
    this.#options = options;
    this.machine = new KernelMachine(program, options.seed, { strategy: 'in-order' }, options.checks);
    for (const { name } of program.files) {
      // Files follow /dev/iommu in every process.
      this.#things.set(name, { fd: 1 + program.files.findIndex((file) => file.name === name) });
    }
  }

  /** @throws what a rule or an expectation that is broken throws */
  run(): void {
    const { machine } = this;
    const { runtime } = machine;
    const { observer, schedule, inject } = this.#options;
    this.#alone(SETUP_TASK, this.#setup());
    for (const { fault, ...rule } of this.#program.faults) runtime.faults.arm(fault, rule);
    this.#options.onMachine?.(machine);
    runtime.useSchedule(schedule);
    const { scheduler } = runtime;
    if (observer !== undefined) scheduler.observer = observer;
    for (const { name, process, calls } of this.#program.tasks) {
      runtime.spawn(name, this.#calls(name, process, calls));
      if (inject !== undefined) scheduler.runUntil(Infinity);
    }
    scheduler.runUntil(Infinity);
    scheduler.observer = undefined;
    this.#checkAllEnded();
  }

  /** Gives everything back. @throws InvariantError when something stays */
  tearDown(): void {
    this.machine.runtime.useSchedule({ strategy: 'in-order' });
    this.#alone('teardown', this.#closeAll());
    this.machine.checkNothingIsLeft();
  }

  #alone(name: string, body: Task<void>): void {
    const { runtime } = this.machine;
    runtime.spawn(name, body);
    runtime.scheduler.runUntil(Infinity);
    this.#checkAllEnded();
  }

  #checkAllEnded(): void {
    const stuck = this.machine.runtime.scheduler.unfinished();
    if (stuck.length > 0) {
      const waits = stuck.map(({ name, waitsFor }) => `${name} waits for ${waitsFor ?? 'its turn'}`).sort();
      throw new InvariantError(waits.join('; '), 'no-deadlock');
    }
    this.machine.runtime.invariants.held('no-deadlock');
  }

  *#setup(): Task<void> {
    yield* this.machine.start();
    const { inject } = this.#options;
    if (inject !== undefined) this.machine.runtime.faults.hold(inject.fault, inject.rule);
    const first = this.#program.processes[0];
    if (first !== undefined) yield* this.#calls(SETUP_TASK, first.name, this.#program.setup);
  }

  /** What a task has of its own is made before it runs: which addresses it gets does not depend on the schedule. */
  #calls(task: string, process: string, calls: readonly Call[]): Task<void> {
    const caller: Caller = { machine: this.machine, things: this.#things, ...this.machine.context(process) };
    return this.#perform(task, caller, calls);
  }

  *#perform(task: string, caller: Caller, calls: readonly Call[]): Task<void> {
    const { runtime } = this.machine;
    for (const call of calls) {
      yield 'program:call';
      const startNs = runtime.now;
      const before = this.#options.inject === undefined ? 0 : this.#contentsHash();
      const rc = yield* perform(caller, call);
      if (this.#options.inject !== undefined && rc < 0) this.#checkUnchanged(task, call, before);
      const text = nameOf(rc);
      this.results.push({ task, call, rc, text, startNs, endNs: runtime.now });
      runtime.emit('program.call', { op: call.op, answer: text });
      if (this.#options.inject !== undefined) continue;
      const allowed = call.expect ?? (task === SETUP_TASK ? ['ok'] : undefined);
      if (allowed !== undefined && !allowed.includes(text)) {
        const what = `${UNEXPECTED_ANSWER} in ${task === SETUP_TASK ? task : `task ${task}`}`;
        throw new UnexpectedAnswer(`${what}: ${call.op} answered ${text}, expected ${allowed.join(' or ')}`, call);
      }
    }
  }

  /** A call that fails leaves everything as it was; only meaningful where no other task was at work meanwhile. */
  #checkUnchanged(task: string, { op, args }: Call, before: number): void {
    // What was done before an answer could not be copied out mostly stays done.
    if (this.#options.inject?.fault === 'mm.copy-to-user') return;
    if (PARTIAL.has(op) || ('times' in args && args.times > 1)) return;
    if (this.machine.runtime.scheduler.unfinished().length > 1) return;
    invariant(this.#contentsHash() === before, () => `${task}: ${op} failed and changed something`, 'INV-9');
    this.machine.runtime.invariants.held('INV-9');
  }

  *#closeAll(): Task<void> {
    for (const device of [...this.machine.bound.keys()]) yield* this.machine.giveBack(device);
    for (const process of this.machine.processes.values()) {
      process.mm.release();
      yield* process.files.closeAll();
    }
  }

  /** A device that was refused, whatever for, reaches nothing: that it came too late is what the order changes. */
  reachHash(): number | undefined {
    const { setup, tasks } = this.#program;
    const calls = tasks.flatMap((task) => task.calls);
    if (!calls.every(({ op }) => PLUGS.has(op))) return undefined;
    const names = [...setup, ...calls].flatMap(({ op, args }) => (op === 'device' && 'as' in args ? [args.as] : []));
    const devices = [...new Set(names)].sort().map((name) => this.#things.get(name)?.device);
    return hashed((add) => {
      this.machine.addReach(add, devices);
    });
  }

  /** A number for everything that can be told at the end of the tasks. */
  stateHash(): number {
    return hashed((add) => {
      this.#addState(add);
    });
  }

  /** The same, with what is in the tables. */
  #contentsHash(): number {
    return hashed((add) => {
      this.#addState(add);
      this.machine.addContents(add);
    });
  }

  #addState(add: (value: number) => void): void {
    const order = new Map(this.#program.tasks.map(({ name }, i) => [name, i]));
    const sorted = this.results.map((result, i) => ({ result, i, task: order.get(result.task) ?? -1 }));
    sorted.sort((a, b) => a.task - b.task || a.i - b.i);
    for (const { result, task } of sorted) {
      add(task);
      add(result.rc);
    }
    this.machine.addState(add);
  }
}

/** FNV-1a over the halves of numbers. */
function hashed(tell: (add: (value: number) => void) => void): number {
  let hash = 0x811c9dc5;
  tell((value) => {
    hash = Math.imul(hash ^ (value & 0xffff), 0x01000193);
    hash = Math.imul(hash ^ (value >>> 16), 0x01000193);
  });
  return hash >>> 0;
}

function failureOf(error: unknown, task: string): ProgramFailure {
  const thrown = error instanceof Error ? error : new Error(String(error));
  const id = thrown instanceof InvariantError ? thrown.id : undefined;
  const isTold = thrown instanceof InvariantError || thrown instanceof UnexpectedAnswer;
  const kind = isTold ? '' : `${thrown.name}: `;
  const message = `${kind}${thrown.message}`;
  const line = thrown instanceof UnexpectedAnswer ? thrown.line : undefined;
  const place = line === undefined ? {} : { line };
  return { signature: signatureOf(message), id, message, stack: thrown.stack, task, ...place };
}

/** Runs a program. Never throws for what happens in it. */
export function runProgram(program: Program, options: RunProgramOptions): ProgramOutcome {
  const run = new ProgramRun(program, options);
  const { runtime } = run.machine;
  let failure: ProgramFailure | undefined;
  let stateHash = 0;
  let reachHash: number | undefined;
  const attempt = (body: () => void): void => {
    if (failure !== undefined) return;
    try {
      body();
    } catch (error) {
      failure = failureOf(error, runtime.scheduler.lastTask);
    }
  };
  attempt(() => run.run());
  // Before the tear-down, which has a schedule of its own.
  const choices = [...runtime.scheduler.choices];
  const tasks = runtime.scheduler.tasksSeen;
  attempt(() => {
    if (options.checks !== false) run.machine.audit();
    stateHash = run.stateHash();
    reachHash = run.reachHash();
    run.tearDown();
  });
  run.machine.memory.dispose();
  return {
    failure,
    results: run.results,
    choices,
    tasks,
    invariants: runtime.invariantReport(),
    events: runtime.drainEvents(),
    stateHash,
    reachHash,
    virtualNs: runtime.now,
    leftover: { kernelFrames: run.machine.arena.kernelFramesInUse },
  };
}
