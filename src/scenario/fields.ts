/**
 * Field types that scenario files and host profiles share: addresses, ranges, sizes, names.
 *
 * Each is a zod schema whose output is what the rest of the program wants (bigint addresses, numbers of nanoseconds) and
 * whose input is what JSON Schema shows to editors.
 */
import { z } from 'zod';
import type { AddressRange } from '../hardware/description.js';
import { CAPABILITIES } from '../uapi/capability.js';
import { hexText, parseBandwidth, parseDurationNs, parseSize } from './units.js';

const U64_LAST = (1n << 64n) - 1n;

/** Issue text for a name that is not one. */
const NAME_RULE = 'a name starts with a letter and has letters, digits, "-" and "_" (64 at most)';

/** Name of a host, guest, process, IOAS or result. */
export const name = z
  .string({ error: NAME_RULE })
  .regex(/^[A-Za-z][A-Za-z0-9_-]{0,63}$/, NAME_RULE)
  .refine((text) => !(text in Object.prototype), NAME_RULE);

/** An address: an integer, best written in hexadecimal, below 2^64. */
export const address = z
  .bigint({ error: 'expected an address, e.g. 0xc6010000' })
  .min(0n, 'an address is not negative')
  .max(U64_LAST, 'an address is below 2^64');

/** A count as an ordinary number. */
export function count(least: number, most: number): z.ZodType<number, bigint> {
  return z
    .bigint({ error: 'expected a whole number' })
    .min(BigInt(least), `expected at least ${least}`)
    .max(BigInt(most), `expected at most ${most}`)
    .transform(Number);
}

function parsed<T>(what: string, example: string, parse: (text: string) => T | undefined): z.ZodType<T, string> {
  const message = `expected a ${what}, e.g. ${example}`;
  const error = (issue: { readonly input?: unknown }): string =>
    typeof issue.input === 'bigint' ? `${message}: ${issue.input} needs a unit` : message;
  return z.string({ error }).transform((text, context) => {
    const value = parse(text);
    if (value === undefined) {
      context.addIssue({ code: 'custom', message: `${message}, not ${JSON.stringify(text.slice(0, 40))}` });
      return z.NEVER;
    }
    return value;
  });
}

/** A size in bytes: `4 GiB`. */
export const size = parsed('size', '4 GiB', parseSize).refine((bytes) => bytes <= U64_LAST, 'a size is below 2^64');

/** A size that is not nothing. */
export const lengthAboveZero = size.refine((length) => length > 0n, 'expected more than nothing');

/** A capability of a process, by its name in Linux. */
export const capability = z.enum(CAPABILITIES, 'expected a capability of Linux, e.g. CAP_IPC_LOCK');

/** A duration in nanoseconds: `50 us`. */
export const duration = parsed('duration of at most 104 days', '50 us', parseDurationNs);

/** A bandwidth in bits per second: `10 Gbit/s`. */
export const bandwidth = parsed('bandwidth', '10 Gbit/s', parseBandwidth);

/** A PCI function: `0000:7d:00.1`. Normalised to lower case. */
export const bdf = z
  .string({ error: 'expected a PCI function, e.g. "0000:7d:00.1"' })
  .regex(/^[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]$/, 'expected a PCI function, e.g. "0000:7d:00.1"')
  .transform((text) => text.toLowerCase());

/** An inclusive range: `{ start, last }` or `{ start, size }`. */
export const rangeShape = { start: address, last: address.optional(), size: size.optional() };

/** The range that the fields of {@link rangeShape} say. */
export function resolveRange(
  { start, last: given, size: length }: { start: bigint; last?: bigint | undefined; size?: bigint | undefined },
  context: z.core.$RefinementCtx,
): AddressRange {
  if ((given === undefined) === (length === undefined)) {
    context.addIssue({ code: 'custom', message: 'a range has start and either last or size' });
    return z.NEVER;
  }
  const last = given ?? start + (length ?? 0n) - 1n;
  if (last < start) {
    context.addIssue({ code: 'custom', message: `range is reversed: ${hexText(start)}-${hexText(last)}` });
    return z.NEVER;
  }
  if (last > U64_LAST) {
    context.addIssue({ code: 'custom', message: 'range ends beyond 2^64' });
    return z.NEVER;
  }
  return { start, last };
}

export const range = z.strictObject(rangeShape).transform(resolveRange);

/** First two ranges of a list that overlap, by index; undefined when all are disjoint. */
export function findOverlap(ranges: readonly AddressRange[]): readonly [number, number] | undefined {
  const order = ranges.map((item, index) => ({ item, index }));
  order.sort((a, b) => (a.item.start < b.item.start ? -1 : a.item.start > b.item.start ? 1 : a.index - b.index));
  for (let i = 1; i < order.length; i++) {
    const before = order[i - 1];
    const after = order[i];
    if (before !== undefined && after !== undefined && after.item.start <= before.item.last) {
      return [Math.min(before.index, after.index), Math.max(before.index, after.index)];
    }
  }
  return undefined;
}

/** What is random in a run. */
export const seed = count(0, Number.MAX_SAFE_INTEGER);

/** Choices of a run are counted from 0. */
const choice = count(0, 2 ** 31);
/** A task, or `time`. */
const task = z.string().min(1);

/** A choice of a schedule that is not the default one: which task goes on then (or `time`). */
const switched = z.strictObject({ at: choice, to: task });
/** A task that is passed over from one choice up to another, which is the first that it may have again. */
const heldBack = z.strictObject({ at: choice, until: choice, hold: task }).superRefine(({ at, until }, context) => {
  if (until > at) return;
  context.addIssue({
    code: 'custom',
    path: ['until'],
    message: `until choice ${until}: expected one after choice ${at}`,
  });
});

/** A schedule: where it is not the default one, in rising order. */
export const deviations = z
  .array(z.union([switched, heldBack], 'expected { at, to } or { at, until, hold }'))
  .superRefine((list, context) => {
    for (const [i, { at }] of list.entries()) {
      const before = list[i - 1]?.at ?? -1;
      if (at > before) continue;
      context.addIssue({
        code: 'custom',
        path: [i, 'at'],
        message: `choice ${at} after choice ${before}: expected rising order`,
      });
    }
  });
