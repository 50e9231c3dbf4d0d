/** What the linearizability checker costs: a recorded history offline, a sequence of calls online. Nanoseconds per operation. */
import { AddressSpaceCheck } from '../../checks/address-space-check.js';
import { checkHistory } from '../../checks/check-history.js';
import { HistoryWriter, createHistoryBuffer, createStampCounter } from '../../checks/history.js';
import { invariant } from '../../runtime/task.js';
import { RandomStream } from '../../runtime/random.js';

const AREA_PAGES = 4;
/** Operations of one run of an exploration. */
const RUN_OPERATIONS = 20;

/** What the thread of a recording has open. */
interface OpenCall {
  readonly kind: 'map' | 'unmap' | 'translate';
  readonly area: number;
  /** First frame of the area from now on, or the frame that was reached. */
  readonly frame: number;
}

/**
 * The history of threads that map, unmap and access areas of four pages, one operation open in each thread most of the
 * time. It is right.
 */
export function recordHistory(operations: number, threads: number, areas: number): SharedArrayBuffer[] {
  const random = new RandomStream(1, 'bench history');
  const stamps = createStampCounter();
  const buffers = Array.from({ length: threads }, () => createHistoryBuffer(2 * operations));
  const writers = buffers.map((buffer) => new HistoryWriter(buffer, stamps));
  const open: (OpenCall | undefined)[] = writers.map(() => undefined);
  const frames = new Map<number, number>();
  let begun = 0;
  while (begun < operations || open.some((call) => call !== undefined)) {
    const thread = random.below(threads);
    const writer = writers[thread];
    invariant(writer !== undefined, 'bench: no such thread');
    const call = open[thread];
    if (call !== undefined) {
      if (call.kind === 'map') frames.set(call.area, call.frame);
      writer.end(0, call.kind === 'unmap' ? AREA_PAGES : call.frame);
      open[thread] = undefined;
      continue;
    }
    const area = random.below(areas);
    const rivals = open.filter((other) => other?.area === area);
    const frame = frames.get(area);
    const first = area * AREA_PAGES;
    if (begun >= operations || rivals.some((rival) => rival?.kind !== 'translate')) continue;
    if (frame === undefined) {
      if (rivals.length > 0) continue;
      writer.beginMap(thread, first, AREA_PAGES);
      writer.extent(first, AREA_PAGES, begun * AREA_PAGES);
      open[thread] = { kind: 'map', area, frame: begun * AREA_PAGES };
    } else if (rivals.length === 0 && random.chance(1, 2)) {
      frames.delete(area);
      writer.beginUnmap(thread, first, AREA_PAGES);
      writer.extent(first, AREA_PAGES);
      open[thread] = { kind: 'unmap', area, frame };
    } else {
      const page = random.below(AREA_PAGES);
      writer.beginTranslate(thread, first + page);
      open[thread] = { kind: 'translate', area, frame: frame + page };
    }
    begun++;
  }
  return buffers;
}

/** Checks a recorded history of that many operations by eight threads. */
export function measureOffline(operations: number, areas: number): number {
  const history = recordHistory(operations, 8, areas);
  const start = performance.now();
  const { verdict } = checkHistory(history);
  const elapsedMs = performance.now() - start;
  invariant(verdict === 'pass', `bench: the history is right, and the checker says ${verdict}`);
  return (elapsedMs * 1e6) / operations;
}

/** Checks runs of MAP, two accesses and UNMAP while they happen, twenty operations a run. */
export function measureOnline(runs: number): number {
  const start = performance.now();
  for (let run = 0; run < runs; run++) {
    const check = new AddressSpaceCheck();
    for (let first = 0; first < RUN_OPERATIONS; first += 4) {
      const map = check.beginMap(0, first, AREA_PAGES);
      check.shows(map, first, AREA_PAGES, 0x1000 + first);
      check.end(map, 0);
      for (const page of [first, first + 3]) check.endTranslate(check.beginTranslate(0, page), 0x1000 + page);
      const unmap = check.beginUnmap(0, first, AREA_PAGES);
      check.takes(unmap, first, AREA_PAGES);
      check.endUnmap(unmap, 0, AREA_PAGES);
    }
    invariant(check.finish() === 'pass', 'bench: the run is right, and the checker says otherwise');
  }
  return ((performance.now() - start) * 1e6) / (runs * RUN_OPERATIONS);
}
