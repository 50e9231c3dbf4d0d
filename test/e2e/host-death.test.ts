/** A host's worker that dies costs its scenario a clear failure and nobody else anything. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { B_IS_KILLED, twoHosts } from '../fixtures/two-hosts.js';
import { runJson } from './cli.js';

const folder = mkdtempSync(join(tmpdir(), 'iovaduct-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const KILLED = twoHosts('Host b dies in the middle', B_IS_KILLED);
const HEALTHY = `
title: Nothing happens here
hosts:
  a: { profile: ampere-altra }
guests:
  vm: { on: a, vmm: qemu-virt, memory: 1 GiB }
steps:
  - boot: vm
  - expect: { of: vm, runs-on: a, memory: intact }
`;

test.each([
  ['workers', '1'],
  ['workers', '2'],
  ['inline', '1'],
])('placement %s, %s jobs', (placement, jobs) => {
  writeFileSync(join(folder, 'a-healthy.yaml'), HEALTHY);
  writeFileSync(join(folder, 'b-killed.yaml'), KILLED);
  writeFileSync(join(folder, 'c-healthy.yaml'), HEALTHY);
  const { status, json } = runJson(folder, '--placement', placement, '--jobs', jobs);
  expect(status).toBe(1);
  expect(json.scenarios.map((s) => [s.name, s.verdict])).toEqual([
    ['a-healthy', 'pass'],
    ['b-killed', 'fail'],
    ['c-healthy', 'pass'],
  ]);
  expect(json.scenarios[1]?.checks.map((check) => check.detail).join('\n')).toMatch(/host b/);
});
