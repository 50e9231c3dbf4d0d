/**
 * Quantities as people write them in scenario files: `4 GiB`, `50 us`, `10 Gbit/s`.
 *
 * Sizes are powers of 1024 and bandwidths powers of 1000, as their units say; a quantity must come out as a whole number of
 * bytes, nanoseconds or bits a second. Nothing else is accepted: `4GB`, `4 gib` and a bare number are mistakes, because a
 * reader could not tell what was meant.
 */

const SIZE_UNITS: Readonly<Record<string, bigint>> = {
  B: 1n,
  KiB: 1n << 10n,
  MiB: 1n << 20n,
  GiB: 1n << 30n,
  TiB: 1n << 40n,
};

const DURATION_UNITS: Readonly<Record<string, bigint>> = {
  ns: 1n,
  us: 1_000n,
  ms: 1_000_000n,
  s: 1_000_000_000n,
  min: 60_000_000_000n,
};

const BANDWIDTH_UNITS: Readonly<Record<string, bigint>> = {
  'bit/s': 1n,
  'kbit/s': 1_000n,
  'Mbit/s': 1_000_000n,
  'Gbit/s': 1_000_000_000n,
  'Tbit/s': 1_000_000_000_000n,
};

/** Digits before and after the point are bounded, so that no file can make this slow. */
const QUANTITY = /^(\d{1,15})(?:\.(\d{1,9}))? ?([A-Za-z/]+)$/;

function quantity(text: string, units: Readonly<Record<string, bigint>>): bigint | undefined {
  const match = QUANTITY.exec(text.trim());
  if (match === null) return undefined;
  const [, whole = '', fraction = '', unit = ''] = match;
  const factor = Object.hasOwn(units, unit) ? units[unit] : undefined;
  if (factor === undefined) return undefined;
  const scale = 10n ** BigInt(fraction.length);
  const scaled = BigInt(whole + fraction) * factor;
  return scaled % scale === 0n ? scaled / scale : undefined;
}

/** Bytes of a size such as `4 GiB`, `1.5 MiB` or `512 B`; undefined for anything else. */
export function parseSize(text: string): bigint | undefined {
  return quantity(text, SIZE_UNITS);
}

/** Nanoseconds of a duration such as `50 us` or `1.5 s`; undefined for anything else. */
export function parseDurationNs(text: string): number | undefined {
  const value = quantity(text, DURATION_UNITS);
  return value === undefined || value > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(value);
}

/** Bits per second of a bandwidth such as `10 Gbit/s`; undefined for zero and for anything else. */
export function parseBandwidth(text: string): number | undefined {
  const value = quantity(text, BANDWIDTH_UNITS);
  return value === undefined || value === 0n || value > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(value);
}

/** The largest unit in which a size is a whole number: `4 GiB`. */
export function sizeText(bytes: bigint): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = SIZE_UNITS[unit] ?? 1n;
    if (bytes >= factor && bytes % factor === 0n) return `${bytes / factor} ${unit}`;
  }
  return `${bytes} B`;
}

/** A duration for people, three digits or so: `71 ms`, `3.6 s`. */
export function durationText(ns: number): string {
  const steps: readonly (readonly [number, string])[] = [
    [1e9, 's'],
    [1e6, 'ms'],
    [1e3, 'us'],
  ];
  for (const [factor, unit] of steps) {
    if (ns >= factor) return `${Number((ns / factor).toPrecision(3))} ${unit}`;
  }
  return `${ns} ns`;
}

/** `0xc6010000`. */
export function hexText(value: bigint): string {
  return `0x${value.toString(16)}`;
}

/** A count with its noun: `1 run`, `2 runs`, `3 switches`. */
export function many(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : /(?:s|x|ch|sh)$/.test(what) ? 'es' : 's'}`;
}
