/** `iovaduct host`: the machines a scenario can have, and how to bring in another. */
import { writeFileSync } from 'node:fs';
import { basename, extname } from 'node:path';
import type { Command } from 'commander';
import type { HostDescription } from '../hardware/description.js';
import { hostText } from '../report/host-text.js';
import { lspciText, type LspciResource } from '../report/lspci.js';
import { bootHost } from '../scenario/booted-host.js';
import { hostProfileText } from '../scenario/host-profile-text.js';
import { readHostFile, shippedHosts, shippedProfile, shippedSnapshot } from '../scenario/hosts.js';
import { parseReservedRegions } from '../scenario/snapshot.js';
import { CONVENTIONAL_CONFIG_BYTES, expressType } from '../uapi/pci-regs.js';
import { UsageError } from './exit-codes.js';
import { readInput } from './files.js';

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

/** Bytes that lspci reads of a function: all of them when it is PCI Express. */
function visibleConfig(config: Uint8Array): Uint8Array {
  return expressType(config) === undefined ? config.subarray(0, CONVENTIONAL_CONFIG_BYTES) : config;
}

function resourcesOf(text: string): LspciResource[] {
  return text.split('\n').flatMap((line, index) => {
    const [start, last, flags] = line.split(' ');
    if (start === undefined || last === undefined || flags === undefined || BigInt(flags) === 0n) return [];
    return [{ index, start: BigInt(start), last: BigInt(last), flags: BigInt(flags) }];
  });
}

async function show(
  name: string | undefined,
  bdfs: readonly string[],
  options: { readonly verbose?: boolean },
): Promise<void> {
  if (name === undefined) {
    const { profiles, snapshots } = shippedHosts();
    const titled = (host: HostDescription | undefined): string => host?.title ?? '';
    for (const profile of profiles) process.stdout.write(`profile   ${profile}  ${titled(shippedProfile(profile))}\n`);
    for (const snapshot of snapshots) process.stdout.write(`snapshot  ${snapshot}\n`);
    return;
  }
  const host = find(name);
  const booted = await bootHost(host);
  const groupOf = (bdf: string): number | undefined => booted.groups.find((g) => g.devices.includes(bdf))?.number;
  const wanted = bdfs.map((bdf) => (bdf.length < 12 ? `0000:${bdf}` : bdf));
  const unknown = wanted.find((bdf) => !booted.functions.some((fn) => fn.bdf === bdf));
  if (unknown !== undefined)
    throw new UsageError(`${name} has no ${unknown}; there are ${booted.functions.map((fn) => fn.bdf).join(', ')}`);
  if (wanted.length === 0) process.stdout.write(hostText(host, booted.groups));
  if (wanted.length === 0 && options.verbose !== true) return;
  for (const fn of booted.functions) {
    if (wanted.length > 0 && !wanted.includes(fn.bdf)) continue;
    const { driver } = host.functions.find((given) => given.bdf === fn.bdf) ?? {};
    const iommuGroup = groupOf(fn.bdf);
    const text = lspciText({
      bdf: fn.bdf,
      config: visibleConfig(fn.config),
      resources: resourcesOf(fn.resource),
      ...(driver === undefined ? {} : { driver }),
      ...(iommuGroup === undefined ? {} : { iommuGroup }),
    });
    process.stdout.write(`${text}${text.endsWith('\n') ? '' : '\n'}`);
  }
}

/** Where reserved_regions text is put when no machine comes with it. */
const BASE_PROFILE = 'arm-generic';

function importHost(file: string, options: { readonly output?: string; readonly base: string }): void {
  let host: HostDescription;
  if (extname(file) === '.json' || extname(file) === '.yaml') host = readFile(file);
  else {
    const base = find(options.base);
    const regions = parseReservedRegions(file, readInput(file).toString()).map(({ start, last, type, path }) => ({
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

/** Adds the command. */
export function addHostCommand(program: Command): void {
  const host = program.command('host').description('host profiles and snapshots');
  host
    .command('show')
    .description('describe a host as its kernel sees it, or list those that are shipped')
    .argument('[name]', 'a profile, a snapshot or a file')
    .argument('[bdf...]', 'PCI functions to decode as lspci -vvv would')
    .option('-v, --verbose', 'decode every PCI function')
    .action(show);
  host
    .command('import')
    .description('make a host profile of a snapshot (.json) or of pasted reserved_regions text')
    .argument('<file>', 'a snapshot, or the output of grep over /sys/kernel/iommu_groups/*/reserved_regions')
    .option('-o, --output <file>', 'write the profile there')
    .option('--base <name>', 'the machine that pasted text is about', BASE_PROFILE)
    .action(importHost);
}
