/** Ctrl-C, as a user presses it: a search in this thread and one in several end with what they have. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';

/** Interrupts an exploration that would take an hour as soon as it tells how far it is. */
async function interrupted(...args: string[]): Promise<{ readonly status: unknown; readonly out: string }> {
  const command = ['dist/src/cli/main.js', 'explore', 'scenarios/races/map-unmap.yaml', '--runs', '10000000', ...args];
  const child = spawn(process.execPath, command, { env: { ...process.env, NO_COLOR: '1' } });
  let out = '';
  child.stdout.on('data', (bytes: Buffer) => (out += bytes.toString()));
  const ended = once(child, 'close') as Promise<readonly unknown[]>;
  const told = new Promise<void>((tell) => {
    let text = '';
    child.stderr.on('data', (bytes: Buffer) => {
      text += bytes.toString();
      if (/ schedules/.test(text)) tell();
    });
  });
  await Promise.race([told, ended]);
  child.kill('SIGINT');
  return { status: (await ended)[0], out };
}

test('a search that is interrupted prints what it has', async () => {
  const ways = [
    ['--jobs', '1'],
    ['--jobs', '2'],
    ['--strategy', 'exhaustive'],
  ];
  for (const { status, out } of await Promise.all(ways.map((args) => interrupted(...args)))) {
    expect(status).toBe(130);
    expect(out).toMatch(/^\? map-unmap {2}[1-9]\d* schedules/);
    expect(out).toContain('\n  interrupted\n');
  }
});
