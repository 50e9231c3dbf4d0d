/** The parts of the page that need no browser: axes, packing, filters, addresses. */
import { describe, expect, test } from 'vitest';
import type { PageScenario } from '../../src/report/page/data.js';
import { EVERYTHING, isWanted, parseTarget } from '../../src/report/page/find.js';
import {
  addressScale,
  axisLabels,
  clustered,
  layered,
  linearTimeScale,
  packed,
  timeScale,
} from '../../src/report/page/scale.js';

describe('axes', () => {
  test('keep the order, fill the width, and give a page and a tebibyte room', () => {
    const edges = [1n << 40n, 0n, 4096n, 1n << 64n];
    const scale = addressScale(edges, 100, 900);
    expect(scale.at(0n)).toBe(100);
    expect(scale.at(1n << 64n)).toBeCloseTo(1000);
    expect(scale.at(4096n) - scale.at(0n)).toBeGreaterThan(10);
    expect(scale.at(1n << 40n)).toBeGreaterThan(scale.at(4096n));
  });

  test('of time have a place for what they were not made of, too', () => {
    const scale = timeScale([0, 100, 1e9], 0, 600);
    expect(scale.at(50)).toBeCloseTo(scale.at(100) / 2);
    expect(scale.at(-5)).toBe(0);
    expect(scale.at(2e9)).toBeCloseTo(600);
    const places = [3, 99, 101, 5e8, 9e8].map(scale.at);
    expect(places).toEqual(places.toSorted((a, b) => a - b));
  });

  test('of one value or none do no harm', () => {
    expect(timeScale([7], 10, 500).at(7)).toBe(10);
    expect(timeScale([], 10, 500).edges).toEqual([]);
    expect(linearTimeScale(0, 10, 500).at(0)).toBe(10);
  });

  test('labels do not run into each other, and the ends have one', () => {
    const labels = axisLabels(timeScale([0, 1, 2, 3, 4, 1000, 1e9], 0, 300), (edge) => `${edge} nanoseconds`);
    expect(labels.at(0)).toMatchObject({ edge: 0, anchor: 'start' });
    expect(labels.at(-1)).toMatchObject({ edge: 1e9, anchor: 'end' });
    expect(labels.length).toBeLessThan(4);
  });

  test('bars that overlap go into different rows', () => {
    const bars = [
      { from: 0, to: 10 },
      { from: 5, to: 8 },
      { from: 10, to: 12 },
    ];
    expect(packed(bars).map((row) => row.length)).toEqual([2, 1]);
  });

  test('ranges that overlap go into different rows, and what belongs together stays together', () => {
    const range = (start: number, last: number) => ({
      start: `0x${start.toString(16)}`,
      last: `0x${last.toString(16)}`,
    });
    const top = { start: '0x8000000000000000', last: '0xffffffffffffffff' };
    const [doorbell, window, high, inbound] = [range(8, 9), range(0, 15), range(32, 63), range(0, 31)];
    expect(layered([[doorbell], [high, window], [inbound, top]])).toEqual([[doorbell], [window, high], [inbound, top]]);
    expect(layered([[high], [doorbell], [range(10, 11)]])).toEqual([[doorbell, range(10, 11), high]]);
    expect(layered([[top], [{ start: '0x8000000000000000', last: '0x8000000000000000' }]])).toHaveLength(2);
  });

  test('ticks that would lie over each other become one', () => {
    const ticks = [{ x: 30 }, { x: 1 }, { x: 4 }, { x: 12 }];
    expect(clustered(ticks, 10).map((group) => group.map(({ x }) => x))).toEqual([[1, 4], [12], [30]]);
  });
});

describe('finding', () => {
  const scenario = {
    ...{ id: 'loud', name: 'loud', family: 'flagship', file: 'scenarios/flagship/loud.yaml', title: 'A doorbell' },
    ...{ covers: ['RR-15'], verdict: 'fail', headline: 'refused', steps: [] },
    checks: [{ name: 'vf: verdict ok', verdict: 'fail', detail: 'got refused: EADDRINUSE' }],
  } as unknown as PageScenario;
  const finds = (words: string): boolean => isWanted(scenario, { ...EVERYTHING, words });

  test('words may be of the title, of covers, of a check, in any case, and all must be there', () => {
    for (const words of ['', 'DOORBELL', 'rr-15', 'eaddrinuse', 'doorbell vf:', '  flagship '])
      expect(finds(words)).toBe(true);
    for (const words of ['nothing', 'doorbell nothing', 'rr-150']) expect(finds(words)).toBe(false);
  });

  test('family, verdict and covers narrow', () => {
    expect(isWanted(scenario, { words: '', family: 'flagship', verdict: 'fail', covers: 'RR-15' })).toBe(true);
    expect(isWanted(scenario, { ...EVERYTHING, family: 'silent' })).toBe(false);
    expect(isWanted(scenario, { ...EVERYTHING, verdict: 'pass' })).toBe(false);
    expect(isWanted(scenario, { ...EVERYTHING, covers: 'RR-1' })).toBe(false);
  });

  test('addresses', () => {
    expect(parseTarget('#loud')).toEqual({ id: 'loud', key: '' });
    expect(parseTarget('#loud/step/3')).toEqual({ id: 'loud', key: 'step/3' });
    expect(parseTarget('#')).toBeUndefined();
    expect(parseTarget('')).toBeUndefined();
  });
});
