/**
 * Mappings as a map of bytes: random sequences of system calls against a model that knows, of every byte of a small window
 * of IOVAs, which byte of the process it shows. Data is written and read through an access, byte by byte.
 *
 * The window lies across the start of the mock domain's aperture, so devices that come and go reserve half of it.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { playOperation } from '../../src/conformance/linux.js';
import { RecordedMachine } from '../../src/conformance/linux-machine.js';

const APERTURE = 0x1000000;
const WINDOW = APERTURE - 0x3000;
const WINDOW_BYTES = 0x6000;
const PAGE = 4096;
const MOCK_PAGE = 2048;
/** User memory that is mapped: the first pages of the buffer `scatter`. */
const USER_BYTES = 0x8000;

/** A mapping; the bytes say where it is and what it shows. */
interface Area {
  readonly first: number;
  readonly bytes: number;
}

/** What should be there. */
class Model {
  /** IOVA (from the window's start) -> byte of the buffer. */
  readonly bytes = new Map<number, number>();
  readonly owner = new Map<number, Area>();
  readonly reserved = new Set<number>();
  readonly allowed = new Set<number>();
  readonly user: Uint8Array;
  device: number | undefined;
  isSmallPages = false;

  constructor(user: Uint8Array) {
    this.user = user;
  }

  get alignment(): number {
    if (this.isSmallPages) return PAGE;
    return this.device === undefined ? 1 : MOCK_PAGE;
  }

  isReserved(iova: number): boolean {
    return this.reserved.has(iova) || (this.device !== undefined && WINDOW + iova < APERTURE);
  }

  get areas(): Area[] {
    return [...new Set([...this.owner].sort((a, b) => a[0] - b[0]).map(([, area]) => area))];
  }

  isAligned(area: Area, alignment: number): boolean {
    const shown = this.bytes.get(area.first) ?? 0;
    return [WINDOW + area.first, area.bytes, shown % PAGE].every((x) => x % alignment === 0);
  }

  map(iova: number, slices: readonly (readonly number[])[]): string {
    const length = slices.reduce((sum, slice) => sum + slice.length, 0);
    const all = Array.from({ length }, (_, i) => iova + i);
    if (length === 0 || length % this.alignment !== 0 || (WINDOW + iova) % this.alignment !== 0) return 'EINVAL';
    if (all.some((at) => this.isReserved(at))) return 'EINVAL';
    if (all.some((at) => this.bytes.has(at))) return 'EEXIST';
    if (slices.some(([first = 0]) => (first % PAGE) % this.alignment !== 0)) return 'EINVAL';
    let at = iova;
    for (const slice of slices) {
      const area = { first: at, bytes: slice.length };
      for (const byte of slice) {
        this.bytes.set(at, byte);
        this.owner.set(at, area);
        at++;
      }
    }
    return 'OK';
  }

  unmap(iova: number, length: number): { readonly ret: string; readonly bytes: number } {
    if (length === 0) return { ret: 'EINVAL', bytes: 0 };
    let bytes = 0;
    for (const area of this.areas) {
      if (area.first + area.bytes <= iova || area.first >= iova + length) continue;
      if (area.first < iova || area.first + area.bytes > iova + length) return { ret: 'ENOENT', bytes };
      for (let at = area.first; at < area.first + area.bytes; at++) {
        this.bytes.delete(at);
        this.owner.delete(at);
      }
      bytes += area.bytes;
    }
    return { ret: bytes === 0 ? 'ENOENT' : 'OK', bytes };
  }

  /** The bytes behind a range, cut where areas end; undefined where there is a hole. */
  slices(iova: number, length: number): number[][] | undefined {
    const slices: number[][] = [];
    let before: Area | undefined;
    for (let at = iova; at < iova + length; at++) {
      const byte = this.bytes.get(at);
      if (byte === undefined) return undefined;
      const area = this.owner.get(at);
      if (area !== before) slices.push([]);
      before = area;
      slices.at(-1)?.push(byte);
    }
    return slices;
  }

  attach(): string {
    if (this.areas.some((area) => !this.isAligned(area, Math.max(this.alignment, MOCK_PAGE)))) return 'EADDRINUSE';
    const below = (at: number): boolean => WINDOW + at < APERTURE;
    return [...this.bytes.keys(), ...this.allowed].some(below) ? 'EADDRINUSE' : 'OK';
  }

  useSmallPages(): string {
    if (this.isSmallPages) return 'OK';
    if (this.device !== undefined && this.bytes.size > 0) return 'EINVAL';
    if (this.areas.some((area) => !this.isAligned(area, PAGE))) return 'EADDRINUSE';
    this.isSmallPages = true;
    return 'OK';
  }

  free(iova: number, length: number): boolean {
    return !Array.from({ length }, (_, i) => iova + i).some((at) => this.bytes.has(at) || this.allowed.has(at));
  }
}

/** Places and lengths: pages, halves, and anything. */
const place = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: WINDOW_BYTES / PAGE - 1 }).map((page) => page * PAGE) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: WINDOW_BYTES / MOCK_PAGE - 1 }).map((half) => half * MOCK_PAGE) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: WINDOW_BYTES - 1 }) },
);
const length = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom(PAGE, PAGE, 2 * PAGE, MOCK_PAGE, 3 * MOCK_PAGE) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 2 * PAGE }) },
);
const user = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(0, PAGE, 2 * PAGE, 5 * PAGE) },
  { weight: 1, arbitrary: fc.constantFrom(MOCK_PAGE, PAGE + MOCK_PAGE, 1, 0x123) },
);

const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ op: fc.constant('map' as const), iova: place, length, user }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('unmap' as const), iova: place, length }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('copy' as const), iova: place, from: place, length }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('read' as const), iova: place, length }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('write' as const), iova: place, length, salt: fc.nat(255) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('attach' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('detach' as const) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('reserve' as const), iova: place, length }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('allow' as const), iova: place, length }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('pages' as const), large: fc.boolean() }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** One sequence on a fresh descriptor of the machine. */
class Sequence {
  readonly #machine: RecordedMachine;
  readonly #model: Model;

  constructor(machine: RecordedMachine) {
    this.#machine = machine;
    machine.open();
    this.#call('IOAS_ALLOC', { flags: 0 });
    this.#call('TEST_CREATE_ACCESS', { ioas_id: 1, flags: 0 });
    this.#model = new Model(this.#userBytes());
  }

  #call(op: string, input: Record<string, unknown>): { readonly ret: string; readonly out: Record<string, unknown> } {
    const { ret, out } = playOperation(this.#machine, op, input as never);
    return { ret, out: out ?? {} };
  }

  #userBytes(): Uint8Array {
    return this.#machine.load(0x100000000000n, USER_BYTES).slice();
  }

  run(steps: readonly Step[]): void {
    for (const each of steps) {
      this.#step(each);
      this.#look();
    }
    expect(this.#userBytes()).toEqual(this.#model.user);
    this.#machine.close();
  }

  #step(each: Step): void {
    const model = this.#model;
    const range = 'iova' in each ? { iova: hex(WINDOW + each.iova), ioas_id: 1 } : { ioas_id: 1 };
    switch (each.op) {
      case 'map': {
        const user_va = { buf: 'scatter', off: hex(each.user) };
        const { ret } = this.#call('IOAS_MAP', { ...range, flags: 7, user_va, length: hex(each.length) });
        expect(ret).toBe(model.map(each.iova, [Array.from({ length: each.length }, (_, i) => each.user + i)]));
        return;
      }
      case 'unmap': {
        const { ret, out } = this.#call('IOAS_UNMAP', { ...range, length: hex(each.length) });
        const expected = model.unmap(each.iova, each.length);
        expect(ret).toBe(expected.ret);
        if (ret === 'OK') expect(Number(out['length'])).toBe(expected.bytes);
        return;
      }
      case 'copy': {
        const { ret } = this.#call('IOAS_COPY', {
          flags: 7,
          dst_ioas_id: 1,
          src_ioas_id: 1,
          length: hex(each.length),
          dst_iova: hex(WINDOW + each.iova),
          src_iova: hex(WINDOW + each.from),
        });
        const slices = model.slices(each.from, each.length);
        if (each.length === 0) expect(ret).toBe('EINVAL');
        else expect(ret).toBe(slices === undefined ? 'ENOENT' : model.map(each.iova, slices));
        return;
      }
      case 'read':
      case 'write':
        this.#access(each);
        return;
      case 'attach': {
        if (model.device !== undefined) return;
        const { ret, out } = this.#call('TEST_MOCK_DOMAIN', { pt_id: 1 });
        expect(ret).toBe(model.attach());
        if (ret === 'OK') model.device = Number(out['out_stdev_id']);
        return;
      }
      case 'detach': {
        if (model.device === undefined) return;
        expect(this.#call('DESTROY', { id: model.device }).ret).toBe('OK');
        model.device = undefined;
        return;
      }
      case 'reserve': {
        if (each.length === 0) return;
        const { ret } = this.#call('TEST_ADD_RESERVED', {
          ioas_id: 1,
          start: hex(WINDOW + each.iova),
          length: hex(each.length),
        });
        const isFree = model.free(each.iova, each.length);
        expect(ret).toBe(isFree ? 'OK' : 'EADDRINUSE');
        if (isFree) for (let i = 0; i < each.length; i++) model.reserved.add(each.iova + i);
        return;
      }
      case 'allow': {
        const all = Array.from({ length: each.length }, (_, i) => each.iova + i);
        const last = WINDOW + each.iova + each.length - 1;
        const ranges = each.length === 0 ? [] : [[hex(WINDOW + each.iova), hex(last)]];
        const { ret } = this.#call('IOAS_ALLOW_IOVAS', { ioas_id: 1, num_iovas: ranges.length, ranges });
        const isFree = !all.some((at) => model.isReserved(at));
        if (each.length === 1) expect(ret).toBe('EINVAL');
        else expect(ret).toBe(isFree ? 'OK' : 'EADDRINUSE');
        if (ret !== 'OK') return;
        model.allowed.clear();
        for (const at of all) model.allowed.add(at);
        return;
      }
      case 'pages': {
        const { ret } = this.#call('OPTION', { option_id: 1, op: 0, object_id: 1, val64: each.large ? '0x1' : '0x0' });
        if (each.large) model.isSmallPages = false;
        expect(ret).toBe(each.large ? 'OK' : model.useSmallPages());
      }
    }
  }

  #access(each: Extract<Step, { op: 'read' | 'write' }>): void {
    const slices = this.#model.slices(each.iova, each.length);
    const isWrite = each.op === 'write';
    const salt = isWrite ? { salt: each.salt } : {};
    const { ret } = this.#call('TEST_ACCESS_RW', {
      access: 0,
      flags: isWrite ? 1 : 0,
      iova: hex(WINDOW + each.iova),
      length: hex(each.length),
      ...salt,
    });
    if (each.length === 0) expect(ret).toBe('EINVAL');
    else expect(ret).toBe(slices === undefined ? 'ENOENT' : 'OK');
    const { user: memory } = this.#model;
    if (ret === 'OK' && !isWrite) {
      const got = this.#machine.load(0x100060000000n, each.length);
      expect([...got]).toEqual(slices?.flat().map((byte) => memory[byte]));
    }
    if (!isWrite) return;
    // What comes before a hole is written all the same.
    for (let i = 0; i < each.length; i++) {
      const byte = this.#model.bytes.get(each.iova + i);
      if (byte === undefined) break;
      memory[byte] = (each.salt + 3 * i) & 255;
    }
  }

  /** Ranges and alignment as user space sees them. */
  #look(): void {
    const { out } = this.#call('IOAS_IOVA_RANGES', { ioas_id: 1, num_iovas: 32 });
    expect(Number(out['out_iova_alignment'])).toBe(this.#model.alignment);
    const usable = out['ranges'] as readonly (readonly [string, string])[];
    const isUsable = (at: number): boolean =>
      usable.some(([start, last]) => BigInt(start) <= BigInt(at) && BigInt(at) <= BigInt(last));
    for (let at = 0; at < WINDOW_BYTES; at += MOCK_PAGE / 2)
      expect(isUsable(WINDOW + at)).toBe(!this.#model.isReserved(at));
  }
}

test('every byte of a window shows the byte it should', () => {
  let machine = new RecordedMachine();
  fc.assert(
    fc.property(fc.array(step, { minLength: 5, maxLength: 30 }), (steps) => {
      try {
        new Sequence(machine).run(steps);
      } catch (error) {
        machine = new RecordedMachine();
        throw error;
      }
    }),
    { numRuns: process.env['IOVADUCT_SWEEP'] === undefined ? 25 : 500 },
  );
});
