/** MessagePack between threads: nothing of the process is shared by those that unpack. */
import { expect, test } from 'vitest';
import { packed, unpack, usesNativeCode } from '../../src/layout/msgpack.js';
import '../../src/migration/stream.js';
import '../../src/scenario/recording.js';
import '../../src/testbed/remote-node.js';

test('objects that a thread unpacks while others start keep their keys: no native scanner with a table of the process', () => {
  expect(usesNativeCode()).toBe(false);
});

test('many runs of pages come back as they were', () => {
  const runs = Array.from({ length: 3000 }, (_, i) => ({ firstPage: i * 100_000, pages: 100 + i, stamp: 2 ** 33 + i }));
  expect(unpack(packed({ kind: 'pages', runs, vom: 'Gerät' }))).toEqual({ kind: 'pages', runs, vom: 'Gerät' });
});
