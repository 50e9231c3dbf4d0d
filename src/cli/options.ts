/** Values of options, parsed. commander calls these; what they throw is wrong usage. */
import { InvalidArgumentError } from 'commander';

/** A whole number from `least` on; `hint` is said to who gives something else. */
export function wholeNumber(least: number, hint = ''): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const isWhole = /^\d+$/.test(text);
    if (isWhole && value > Number.MAX_SAFE_INTEGER)
      throw new InvalidArgumentError(`expected ${Number.MAX_SAFE_INTEGER} at most`);
    if (!isWhole || value < least) throw new InvalidArgumentError(`expected a whole number from ${least} on${hint}`);
    return value;
  };
}

/** A part of a whole: `1/4` to `4/4`. */
export interface Shard {
  readonly index: number;
  readonly of: number;
}

/** Parses `I/N`, 1 <= I <= N. */
export function shard(text: string): Shard {
  const match = /^(\d+)\/(\d+)$/.exec(text);
  const index = Number(match?.[1]);
  const of = Number(match?.[2]);
  if (match === null || index < 1 || of < 1 || index > of)
    throw new InvalidArgumentError('expected I/N with 1 <= I <= N');
  return { index, of };
}

/** The I-th of N interleaved parts of a list. */
export function takeShard<T>(items: readonly T[], part: Shard | undefined): T[] {
  if (part === undefined) return [...items];
  return items.filter((_, index) => index % part.of === part.index - 1);
}
