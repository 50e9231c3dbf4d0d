/**
 * One run: hosts and links from descriptions, a main task, a seed, a placement → a history.
 *
 * With placement `workers` every host lives in a worker of its own and this thread never loads kernel or hardware code;
 * with `inline` all nodes live here. The history is the same.
 */
import type { HostDescription } from '../hardware/description.js';
import { InvariantLedger, type InvariantReport } from '../runtime/invariants.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { TaskHandle } from '../runtime/scheduler.js';
import type { Task } from '../runtime/task.js';
import { conduct, failureOfNode, type Conducted, type RunFailure } from './conductor.js';
import { Lab } from './lab.js';
import type { LinkSpec } from './link.js';
import { MAIN_NODE, NodeFailure, type Node } from './node.js';
import { RemoteHostNode } from './remote-node.js';

export type Placement = 'workers' | 'inline';

/** What to run. */
export interface RunSpec {
  readonly seed: number;
  readonly placement: Placement;
  readonly strategy: 'in-order' | 'random';
  /** The schedule of a node, where it is neither {@link strategy} nor recorded. */
  readonly scheduleOf?: (node: string) => ScheduleSpec;
  /** Choices of an earlier run by node name: repeats its schedule. */
  readonly recordedChoices?: Readonly<Record<string, readonly number[]>>;
  readonly hosts: readonly HostDescription[];
  readonly links: readonly LinkSpec[];
  readonly main: (lab: Lab) => Task<void>;
  /** Virtual time after which the run is given up; an hour when not given. */
  readonly limitNs?: number;
  /** Whether the history is wanted; it is when nothing is said. */
  readonly keepsHistory?: boolean;
  readonly onProgress?: (virtualNs: number) => void;
}

/** A finished run. `failure` is there when the main task did not end by itself. */
export interface RunOutcome extends Conducted {
  /** The schedule of each node, for replay; missing for nodes that died. */
  readonly choices: Readonly<Record<string, readonly number[]>>;
  /** How often each rule was looked at, in all nodes that are still there. */
  readonly invariants: readonly InvariantReport[];
  /** Most tasks that one of these nodes had in the run. */
  readonly tasks: number;
}

const DEFAULT_LIMIT_NS = 3600e9;

function scheduleFor(spec: RunSpec, node: string): ScheduleSpec {
  const choices = spec.recordedChoices?.[node];
  if (choices === undefined && spec.scheduleOf !== undefined) return spec.scheduleOf(node);
  if (choices === undefined) return { strategy: spec.strategy };
  // Who says what each node's schedule is pre-empts at gates and stalls.
  return { strategy: 'recorded', of: spec.scheduleOf === undefined ? spec.strategy : 'explored', choices };
}

async function startHost(spec: RunSpec, description: HostDescription): Promise<Node> {
  const nodeSpec = { description, seed: spec.seed, schedule: scheduleFor(spec, description.name) };
  if (spec.placement === 'workers') return await RemoteHostNode.start(nodeSpec);
  const { LocalHostNode } = await import('./local-node.js');
  return new LocalHostNode(nodeSpec);
}

/** What nodes have to say when all is over; those that died say nothing. */
async function collect(nodes: readonly Node[]): Promise<Pick<RunOutcome, 'choices' | 'invariants' | 'tasks'>> {
  const choices: Record<string, readonly number[]> = {};
  const ledger = new InvariantLedger();
  let tasks = 0;
  for (const node of nodes) {
    try {
      choices[node.name] = await node.choices();
      for (const report of await node.invariants()) ledger.add(report);
      tasks = Math.max(tasks, await node.tasks());
    } catch (error) {
      if (!(error instanceof NodeFailure)) throw error;
    }
  }
  return { choices, invariants: ledger.report(), tasks };
}

function brokenAtStart(error: unknown): RunOutcome {
  const failure: RunFailure =
    error instanceof NodeFailure
      ? failureOfNode(error)
      : {
          kind: 'broken',
          node: MAIN_NODE,
          message: error instanceof Error ? (error.stack ?? error.message) : String(error),
        };
  return { events: [], lines: [], digest: '', virtualNs: 0, rounds: 0, failure, choices: {}, invariants: [], tasks: 0 };
}

/** Carries out a run. Never rejects for what happens inside it: see `failure`. */
export async function run(spec: RunSpec): Promise<RunOutcome> {
  const lab = new Lab(spec.seed, scheduleFor(spec, MAIN_NODE), spec.hosts, spec.links);
  lab.runtime.emit('run.start', { seed: spec.seed, hosts: spec.hosts.map((host) => host.name).join(',') });
  const nodes: Node[] = [lab];
  try {
    for (const description of spec.hosts) nodes.push(await startHost(spec, description));
    const main: TaskHandle<void> = lab.spawn('main', spec.main(lab));
    const conducted = await conduct(nodes, {
      isDone: () => main.isDone,
      describeStuck: () =>
        lab.runtime.scheduler
          .unfinished()
          .map((task) => `${task.name} waits for ${task.waitsFor ?? 'its turn'}`)
          .join('; '),
      limitNs: spec.limitNs ?? DEFAULT_LIMIT_NS,
      ...(spec.keepsHistory === undefined ? {} : { keepsHistory: spec.keepsHistory }),
      ...(spec.onProgress === undefined ? {} : { onProgress: spec.onProgress }),
    });
    return { ...conducted, ...(await collect(nodes)) };
  } catch (error) {
    return brokenAtStart(error);
  } finally {
    for (const node of nodes) await node.close();
  }
}
