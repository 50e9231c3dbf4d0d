/** The conductor's promise: history does not depend on where nodes live or how long their turns take. */
import { describe, expect, test } from 'vitest';
import type { HostDescription } from '../../src/hardware/description.js';
import { NodeRuntime } from '../../src/runtime/node-runtime.js';
import { WaitQueue, type Task } from '../../src/runtime/task.js';
import { conduct } from '../../src/testbed/conductor.js';
import { Lab } from '../../src/testbed/lab.js';
import {
  MAIN_NODE,
  MESSAGE_LATENCY_NS,
  NodeFailure,
  type Node,
  type NodeResult,
  type NodeTurn,
} from '../../src/testbed/node.js';

interface EchoRequest {
  readonly id: number;
  readonly pid: number;
}

/** A host that answers every system call after `costNs`, optionally from another turn of the event loop. */
class EchoHost implements Node {
  readonly name: string;
  readonly runtime: NodeRuntime;
  readonly #isAsync: boolean;
  readonly #costNs: number;
  #outbox: NodeResult['outbox'][number][] = [];

  constructor(name: string, costNs: number, isAsync: boolean) {
    this.name = name;
    this.runtime = new NodeRuntime(name, 1);
    this.#costNs = costNs;
    this.#isAsync = isAsync;
  }

  advance(turn: NodeTurn): NodeResult | Promise<NodeResult> {
    if (this.#isAsync) return Promise.resolve().then(() => this.#run(turn));
    return this.#run(turn);
  }

  #run(turn: NodeTurn): NodeResult {
    for (const message of turn.inbox) {
      this.runtime.scheduler.callAt(message.deliverNs, () =>
        this.runtime.spawn('serve', this.#serve(message.body as EchoRequest)),
      );
    }
    this.runtime.scheduler.runUntil(turn.horizonNs);
    const outbox = this.#outbox;
    this.#outbox = [];
    return { outbox, events: this.runtime.drainEvents(), nextNs: this.runtime.scheduler.nextTime() };
  }

  *#serve(request: EchoRequest): Task<void> {
    if (request.pid === 666) throw new NodeFailure(this.name, 'host-died', 'killed');
    this.runtime.emit('echo', { id: request.id });
    yield this.#costNs;
    const deliverNs = this.runtime.now + MESSAGE_LATENCY_NS;
    this.#outbox.push({
      from: this.name,
      to: MAIN_NODE,
      deliverNs,
      number: request.id,
      body: { id: request.id, syscall: { result: request.pid } },
    });
  }

  choices(): readonly number[] {
    return this.runtime.scheduler.choices;
  }

  tasks(): number {
    return 0;
  }

  invariants(): [] {
    return [];
  }

  close(): void {
    // Nothing to close.
  }
}

const description = (name: string): HostDescription => ({ name }) as HostDescription;

async function conducted(isAsync: boolean, body: (lab: Lab) => Task<void>, limitNs = 1e9) {
  const links = [{ between: ['a', 'b'] as const, bandwidthBitsPerSecond: 8e9, latencyNs: 50_000 }];
  const lab = new Lab(1, { strategy: 'in-order' }, [description('a'), description('b')], links);
  const nodes: Node[] = [lab, new EchoHost('a', 100, isAsync), new EchoHost('b', 777, isAsync)];
  const main = lab.spawn('main', body(lab));
  return conduct(nodes, {
    isDone: () => main.isDone,
    describeStuck: () =>
      lab.runtime.scheduler
        .unfinished()
        .map((t) => t.waitsFor)
        .join(),
    limitNs,
  });
}

function* chatter(lab: Lab): Task<void> {
  const caller = (host: string): Task<void> =>
    (function* () {
      for (let i = 0; i < 20; i++) {
        const reply = yield* lab.host(host).syscall(i, { call: 'exit' });
        lab.runtime.emit('reply', { host, result: reply.result });
      }
    })();
  const tasks = ['a', 'b', 'a'].map((host, index) => lab.spawn(`caller${index}`, caller(host)));
  for (const task of tasks) yield* task.join();
}

describe('conductor', () => {
  test('synchronous and asynchronous nodes give the same history', async () => {
    const inline = await conducted(false, chatter);
    const remote = await conducted(true, chatter);
    expect(inline.failure).toBeUndefined();
    expect(inline.events.length).toBe(120);
    expect(remote.digest).toBe(inline.digest);
    expect(remote.virtualNs).toBe(inline.virtualNs);
  });
  test('a call costs its latency both ways and the work in between', async () => {
    let tookNs = 0;
    await conducted(false, function* (lab) {
      const before = lab.runtime.now;
      yield* lab.host('b').syscall(1, { call: 'exit' });
      tookNs = lab.runtime.now - before;
    });
    expect(tookNs).toBe(2 * MESSAGE_LATENCY_NS + 777);
  });
  test('the history is sorted by time', async () => {
    const { events } = await conducted(false, chatter);
    expect(events.map((event) => event.timeNs)).toEqual(events.map((event) => event.timeNs).sort((x, y) => x - y));
  });
  test('a host that dies ends the run with its name, not a hang', async () => {
    const outcome = await conducted(true, function* (lab) {
      yield* lab.host('a').syscall(666, { call: 'exit' });
    });
    expect(outcome.failure).toMatchObject({ kind: 'host-died', node: 'a' });
  });
  test('waiting for what can never come is reported as stuck', async () => {
    const outcome = await conducted(false, function* (lab) {
      lab.runtime.emit('waiting');
      yield new WaitQueue('nothing');
    });
    expect(outcome.failure).toMatchObject({ kind: 'stuck', message: 'nothing' });
  });
  test('virtual time is limited', async () => {
    const outcome = await conducted(
      false,
      function* () {
        for (;;) yield 1e6;
      },
      1e8,
    );
    expect(outcome.failure).toMatchObject({ kind: 'time-limit' });
  });
});

describe('links', () => {
  test('bytes queue behind each other and arrive after the latency; the two directions are independent', async () => {
    const arrivals: string[] = [];
    await conducted(false, function* (lab) {
      const send = (from: string, to: string, bytes: number): Task<void> =>
        (function* () {
          yield* (lab.link(from, to) ?? expect.unreachable()).send(bytes);
          arrivals.push(`${from}${bytes}@${lab.runtime.now}`);
        })();
      const tasks = [
        lab.spawn('1', send('a', 'b', 1000)),
        lab.spawn('2', send('a', 'b', 500)),
        lab.spawn('3', send('b', 'a', 100)),
      ];
      for (const task of tasks) yield* task.join();
    });
    expect(arrivals).toEqual(['b100@50100', 'a1000@51000', 'a500@51500']);
  });
  test('what is in flight when the link goes down is lost', async () => {
    const outcome: string[] = [];
    await conducted(false, function* (lab) {
      const link = lab.link('a', 'b') ?? expect.unreachable();
      const sending = lab.spawn('send', link.send(1_000_000));
      yield 10;
      link.lose();
      try {
        yield* sending.join();
      } catch (error) {
        outcome.push(String(error));
      }
      link.repair();
      yield* link.send(8);
      outcome.push('sent');
    });
    expect(outcome).toEqual(['LinkLostError: link a-b is down', 'sent']);
  });
});
