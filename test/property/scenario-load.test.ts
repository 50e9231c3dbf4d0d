/** However a scenario file is damaged, the loader answers with a scenario or with file:line:column, soon. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { loadScenario } from '../../src/scenario/load.js';
import { InputError } from '../../src/scenario/text.js';

const seeds = readdirSync('scenarios', { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.yaml') && !file.startsWith('hosts'))
  .map((file) => readFileSync(join('scenarios', file), 'utf8'));

/** Pieces that have meaning in YAML or in scenarios. */
const fragment = fc.constantFrom(
  '{', '}', '[', ']', ':', ' - ', '&a ', '*a', '<<', '|', '>', '"', "'", '#', '\t', '\n', '\u0000', '~', 'null', '!!binary ',
  '__proto__', 'constructor', '-1', '0x', '1e999', '.inf', '99999999999999999999999999', '4 GiB', '0 B', 'vm', 'steps:', 'parallel:',
); // prettier-ignore

const mutation = fc.record({
  at: fc.nat({ max: 9999 }),
  remove: fc.nat({ max: 40 }),
  insert: fc.oneof(fragment, fc.string({ maxLength: 8, unit: 'binary' })),
});

function mutate(text: string, mutations: readonly { at: number; remove: number; insert: string }[]): string {
  return mutations.reduce((now, { at, remove, insert }) => {
    const place = Math.floor((at / 10_000) * (now.length + 1));
    return now.slice(0, place) + insert + now.slice(place + remove);
  }, text);
}

test('1000 damaged files', () => {
  fc.assert(
    fc.property(fc.constantFrom(...seeds), fc.array(mutation, { minLength: 1, maxLength: 4 }), (seed, mutations) => {
      const text = mutate(seed, mutations);
      try {
        loadScenario('m.yaml', text);
      } catch (error) {
        if (!(error instanceof InputError)) throw error;
        expect(error.problems.length).toBeGreaterThan(0);
        for (const line of error.problems) {
          expect(line.line).toBeGreaterThan(0);
          expect(line.column).toBeGreaterThan(0);
          expect(line.line).toBeLessThanOrEqual(text.split(/\r\n|\r|\n/).length + 1);
        }
      }
    }),
    { numRuns: 1000, endOnFailure: true },
  );
});
