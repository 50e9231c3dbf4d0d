/** A board with its runtime, for tests of hardware: no kernel, the SMMUs in their reset state (they bypass). */
import { Board } from '../../src/hardware/board.js';
import type { HostDescription } from '../../src/hardware/description.js';
import type { Interrupt } from '../../src/hardware/msi/controller.js';
import { type PciFunction } from '../../src/hardware/pcie/function.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from '../../src/uapi/pci-regs.js';
import type { RunEvent } from '../../src/runtime/events.js';
import { NodeRuntime, type ScheduleSpec } from '../../src/runtime/node-runtime.js';
import type { Task } from '../../src/runtime/task.js';

export class BoardMachine {
  readonly runtime: NodeRuntime;
  readonly board: Board;
  readonly interrupts: Interrupt[] = [];
  readonly events: RunEvent[] = [];

  constructor(description: HostDescription, seed = 1, schedule: ScheduleSpec = { strategy: 'in-order' }) {
    this.runtime = new NodeRuntime('a', seed, schedule);
    this.board = new Board(this.runtime, description);
    this.board.onInterrupt((interrupt) => this.interrupts.push(interrupt));
  }

  /** A function with memory decode and bus mastering on. */
  enabled(bdf: string): PciFunction {
    const fn = this.function(bdf);
    fn.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    return fn;
  }

  function(bdf: string): PciFunction {
    const fn = this.board.functions.get(bdf);
    if (fn === undefined) throw new Error(`no function ${bdf}`);
    return fn;
  }

  /** Runs until nothing is left to do. */
  settle(): void {
    this.runtime.scheduler.runUntil(this.runtime.now + 1_000_000_000);
    this.events.push(...this.runtime.drainEvents());
  }

  run<T>(task: Task<T>): T {
    let result: { value: T } | undefined;
    const body = function* (): Task<void> {
      result = { value: yield* task };
    };
    this.runtime.spawn('test', body());
    this.settle();
    if (result === undefined) throw new Error('the task did not end');
    return result.value;
  }

  /** Data of the events of a kind so far. */
  eventsOf(kind: string): RunEvent['data'][] {
    return this.events.filter((event) => event.kind === kind).map((event) => event.data);
  }
}
