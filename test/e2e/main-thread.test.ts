/** With placement `workers` the main thread loads neither kernel nor hardware code; `inline` does (so the probe works). */
import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';

/** Registers, in the main thread only, a loader hook that prints every URL it loads. */
const PROBE = `
import { register } from 'node:module';
import { isMainThread } from 'node:worker_threads';
if (isMainThread) {
  const hook = "import { writeSync } from 'node:fs'; export async function load(url, context, next) { writeSync(2, 'LOADED ' + url + '\\\\n'); return next(url, context); }";
  register('data:text/javascript,' + encodeURIComponent(hook));
}
`;

function loaded(placement: string): string[] {
  const probe = `data:text/javascript,${encodeURIComponent(PROBE)}`;
  const args = [
    '--import',
    probe,
    'dist/src/cli/main.js',
    'run',
    'scenarios/flagship/loud.yaml',
    '--placement',
    placement,
    '--jobs',
    '1',
  ];
  const { stderr, status } = spawnSync(process.execPath, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  expect(status).toBe(0);
  return [...stderr.matchAll(/^LOADED .*\/dist\/src\/(.*)$/gm)].map((match) => match[1] ?? '');
}

test('workers: nothing of kernel/ or hardware/ in the main thread', () => {
  const files = loaded('workers');
  expect(files.length).toBeGreaterThan(10);
  expect(files.filter((file) => /^(kernel|hardware|host|core)\//.test(file))).toEqual([]);
});

test('inline: they are there', () => {
  expect(loaded('inline').some((file) => file.startsWith('kernel/'))).toBe(true);
});
