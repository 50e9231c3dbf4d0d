/**
 * Seeded randomness, one independent stream per component.
 *
 * A stream is named; its state is derived from (run seed, name) by SHA-256, so adding a consumer never shifts the numbers
 * another one sees. Generator: xoroshiro128+ (pure-rand).
 */
import { createHash } from 'node:crypto';
import { customRandom, urlAlphabet } from 'nanoid';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plusFromState } from 'pure-rand/generator/xoroshiro128plus';
import type { RandomGenerator } from 'pure-rand/types/RandomGenerator';

/** A deterministic stream of numbers. */
export class RandomStream {
  readonly name: string;
  readonly #generator: RandomGenerator;

  constructor(seed: number, name: string) {
    this.name = name;
    const digest = createHash('sha256').update(`${seed}\0${name}`).digest();
    this.#generator = xoroshiro128plusFromState([0, 4, 8, 12].map((offset) => digest.readInt32LE(offset)));
  }

  /** Uniform integer in 0..bound-1; `bound` from 1 to 2^48. */
  below(bound: number): number {
    return uniformInt(this.#generator, 0, bound - 1);
  }

  /** Uniform integer in first..last. */
  between(first: number, last: number): number {
    return uniformInt(this.#generator, first, last);
  }

  /** True with probability `numerator`/`denominator`. */
  chance(numerator: number, denominator: number): boolean {
    return this.below(denominator) < numerator;
  }

  /** One of the items. */
  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new RangeError(`pick from an empty list in ${this.name}`);
    return item;
  }

  /** An identifier like nanoid's, from this stream. */
  id(length = 12): string {
    return customRandom(urlAlphabet, length, (count) => Uint8Array.from({ length: count }, () => this.below(256)))();
  }
}
