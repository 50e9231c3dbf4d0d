/** The rooms of ARCHITECTURE.md: imports only ever point downwards, and some rooms may not be seen at all from others. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { describe, expect, test } from 'vitest';

/** From the top down. A file may import from its own room and from rooms further down. */
const ROOMS = [
  'cli',
  'report',
  'study',
  'explore',
  'stress',
  'conformance',
  'scenario',
  'migration',
  'vmm',
  'testbed',
  'host',
  'kernel',
  'hardware',
  'checks',
  'core',
  'firmware',
  'runtime',
  'uapi',
  'layout',
];

/** Rooms that live on system calls and messages only. */
const BLIND: Readonly<Record<string, readonly string[]>> = {
  migration: ['kernel', 'hardware', 'host', 'core'],
  vmm: ['kernel', 'hardware', 'host', 'core'],
};

interface Import {
  readonly file: string;
  readonly room: string;
  readonly target: string;
  readonly targetRoom: string;
}

export function importsOf(file: string, text: string): Import[] {
  const room = file.split('/')[1] ?? '';
  const specifiers = [...text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map((match) => match[1] ?? '');
  return specifiers.flatMap((specifier) => {
    const target = normalize(join(dirname(file), specifier));
    const [top, targetRoom] = target.split('/');
    return top === 'src' && targetRoom !== undefined ? [{ file, room, target, targetRoom }] : [];
  });
}

export function violations(imports: readonly Import[]): string[] {
  return imports.flatMap(({ file, room, target, targetRoom }) => {
    const from = ROOMS.indexOf(room);
    const to = ROOMS.indexOf(targetRoom);
    if (from < 0 || to < 0) return [`${file}: imports ${target}: unknown room`];
    if (to < from) return [`${file}: imports upwards from ${target}`];
    if (BLIND[room]?.includes(targetRoom) === true) return [`${file}: ${room} may not see ${targetRoom} (${target})`];
    return [];
  });
}

const files = readdirSync('src', { recursive: true, encoding: 'utf8' })
  .filter((file) => /\.tsx?$/.test(file))
  .map((file) => `src/${file.replaceAll('\\', '/')}`);

describe('rooms', () => {
  test('imports point downwards', () => {
    const all = files.flatMap((file) => importsOf(file, readFileSync(file, 'utf8')));
    expect(all.length).toBeGreaterThan(20);
    expect(violations(all)).toEqual([]);
  });
  test('only src/layout/msgpack.ts imports msgpackr', () => {
    const importers = [...files, ...readdirSync('workers').map((file) => `workers/${file}`)].filter((file) =>
      /from 'msgpackr/.test(readFileSync(file, 'utf8')),
    );
    expect(importers).toEqual(['src/layout/msgpack.ts']);
  });
  test('an import upwards, into a hidden room or into no room would be found', () => {
    const found = (file: string, specifier: string): number =>
      violations(importsOf(file, `import { x } from '${specifier}';`)).length;
    expect(found('src/core/a.ts', '../kernel/b.js')).toBe(1);
    expect(found('src/vmm/a.ts', '../kernel/b.js')).toBe(1);
    expect(found('src/vmm/a.ts', '../attic/b.js')).toBe(1);
    expect(found('src/kernel/a.ts', '../core/b.js')).toBe(0);
  });
});
