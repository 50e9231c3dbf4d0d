/** `iovaduct host`: the machines a scenario can have, and how to bring in another. */
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, extname } from 'node:path';
import type { Command } from 'commander';
import type { HostDescription } from '../hardware/description.js';
import { hostText } from '../report/host-text.js';
import { hostProfileText } from '../scenario/host-profile-text.js';
import { readHostFile, shippedHosts, shippedProfile, shippedSnapshot } from '../scenario/hosts.js';
import { parseReservedRegions } from '../scenario/snapshot.js';
import { UsageError } from './exit-codes.js';

function find(name: string): HostDescription {
  const host = shippedProfile(name) ?? shippedSnapshot(name);
  if (host !== undefined) return host;
  if (extname(name) === '.yaml' || extname(name) === '.json') return readFile(name);
  const { profiles, snapshots } = shippedHosts();
  throw new UsageError(`no host ${name}; there are ${[...profiles, ...snapshots].join(', ')}`);
}

function readFile(path: string): HostDescription {
  try {
    return readHostFile(path, basename(path, extname(path)));
  } catch (error) {
    if (error instanceof Error && 'code' in error) throw new UsageError(error.message);
    throw error;
  }
}

function show(name: string | undefined): void {
  if (name !== undefined) {
    process.stdout.write(hostText(find(name)));
    return;
  }
  const { profiles, snapshots } = shippedHosts();
  const titled = (host: HostDescription | undefined): string => host?.title ?? '';
  for (const profile of profiles) process.stdout.write(`profile   ${profile}  ${titled(shippedProfile(profile))}\n`);
  for (const snapshot of snapshots) process.stdout.write(`snapshot  ${snapshot}\n`);
}

/** Where reserved_regions text is put when no machine comes with it. */
const BASE_PROFILE = 'arm-generic';

function importHost(file: string, options: { readonly output?: string; readonly base: string }): void {
  let host: HostDescription;
  if (extname(file) === '.json' || extname(file) === '.yaml') host = readFile(file);
  else {
    const base = find(options.base);
    const regions = parseReservedRegions(file, readText(file)).map(({ start, last, type, path }) => ({
      start,
      last,
      type,
      owner: path ?? basename(file),
    }));
    host = {
      ...base,
      title: `${base.title}, with the reserved regions of ${basename(file)}`,
      reservedRegions: regions,
    };
  }
  const text = hostProfileText(host);
  if (options.output === undefined) process.stdout.write(text);
  else writeFileSync(options.output, text);
}

function readText(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

/** Adds the command. */
export function addHostCommand(program: Command): void {
  const host = program.command('host').description('host profiles and snapshots');
  host
    .command('show')
    .description('describe a host, or list those that are shipped')
    .argument('[name]', 'a profile, a snapshot or a file')
    .action(show);
  host
    .command('import')
    .description('make a host profile of a snapshot (.json) or of pasted reserved_regions text')
    .argument('<file>', 'a snapshot, or the output of grep over /sys/kernel/iommu_groups/*/reserved_regions')
    .option('-o, --output <file>', 'write the profile there')
    .option('--base <name>', 'the machine that pasted text is about', BASE_PROFILE)
    .action(importHost);
}
