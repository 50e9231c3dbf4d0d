/** Ctrl-C, as a user presses it: whatever takes long ends with what it has. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';

interface Ended {
  readonly status: unknown;
  readonly out: string;
}

/** Interrupts a command as soon as it says on standard error how far it is. */
async function interrupted(howFar: RegExp, ...args: string[]): Promise<Ended> {
  const child = spawn(process.execPath, ['dist/src/cli/main.js', ...args], { env: { ...process.env, NO_COLOR: '1' } });
  let out = '';
  child.stdout.on('data', (bytes: Buffer) => (out += bytes.toString()));
  const ended = once(child, 'close') as Promise<readonly unknown[]>;
  const told = new Promise<void>((tell) => {
    let text = '';
    child.stderr.on('data', (bytes: Buffer) => {
      text += bytes.toString();
      if (howFar.test(text)) tell();
    });
  });
  await Promise.race([told, ended]);
  child.kill('SIGINT');
  return { status: (await ended)[0], out };
}

const MAP_UNMAP = ['explore', 'scenarios/races/map-unmap.yaml', '--runs', '10000000'];

/** All at once: each tells how far it is some seconds after its start. */
test('what is interrupted prints what it has', async () => {
  const searches = [
    ['--jobs', '1'],
    ['--jobs', '2'],
    ['--strategy', 'exhaustive'],
  ].map((args) => interrupted(/ schedules/, ...MAP_UNMAP, ...args));
  const sweep = interrupted(/\d+ runs/, 'explore', '--fail-nth', 'scenarios/races/last-asid.yaml');
  const table = interrupted(/seed 1 of 1000/, 'explore', 'scenarios/races', '--table', '1000', '--jobs', '1');
  const stress = interrupted(/operations/, 'stress', '--seconds', '1000');
  for (const { status, out } of await Promise.all(searches)) {
    expect(status).toBe(130);
    expect(out).toMatch(/^\? map-unmap {2}[1-9]\d* schedules/);
    expect(out).toContain('\n  interrupted\n');
  }
  expect(await sweep).toMatchObject({
    status: 130,
    out: expect.stringMatching(/^\? last-asid [^]*\n {2}interrupted\n$/) as unknown,
  });
  expect(await table).toMatchObject({
    status: 130,
    out: expect.stringContaining('interrupted: rows are missing\n') as unknown,
  });
  const stressed = await stress;
  expect(stressed.status).toBe(130);
  expect(stressed.out).toMatch(/^interrupted: held\n[1-9]\d* operations of 2 clients, /);
});
