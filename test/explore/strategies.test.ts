/** Which schedule comes when: what `--strategy` and `--depth` mean, run by run. */
import { expect, test } from 'vitest';
import { scheduleOf, type Sampling } from '../../src/explore/strategies.js';

/** Runs 0 to 12 in short: `order` nobody pre-empted, `random`, or the depth of PCT. */
function kinds(sampling: Pick<Sampling, 'strategy' | 'depth'>): (string | number)[] {
  return Array.from({ length: 13 }, (_, run) => {
    const schedule = scheduleOf({ ...sampling, seed: 7, choices: 50 }, run);
    if (schedule.strategy === 'pct') {
      expect(schedule).toMatchObject({ seed: 7, run, choices: 50 });
      return schedule.depth;
    }
    if (schedule.strategy === 'deviating') return schedule.deviations.length === 0 ? 'order' : 'deviations';
    expect(schedule).toMatchObject({ strategy: 'explored', seed: 7, run });
    return 'random';
  });
}

const eight = new Array<string>(8).fill('random');
const order = new Array<string>(13).fill('order');

test.each<[Sampling['strategy'], number, (string | number)[]]>([
  ['in-order', 3, order],
  ['random', 3, [...eight, 'random', 'random', 'random', 'random', 'random']],
  ['pct', 5, [...eight, 5, 5, 5, 5, 5]],
  ['pct', 1, [...eight, 1, 1, 1, 1, 1]],
  ['portfolio', 3, ['order', ...eight.slice(1), 'random', 2, 3, 4, 'random']],
  ['portfolio', 6, ['order', ...eight.slice(1), 'random', 2, 3, 6, 'random']],
])('%s, depth %i', (strategy, depth, expected) => expect(kinds({ strategy, depth })).toEqual(expected));
