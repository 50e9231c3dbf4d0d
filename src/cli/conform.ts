/**
 * `iovaduct conform`: recorded corpora as judges.
 *
 * `linux FILE…` replays recorded iommufd sequences, `smmuv3 FILE…` recorded vectors, `hosts FILE…` boots recorded hosts, `layouts FILE…` holds the uAPI declarations
 * against compiled ones, `all` does it for everything below $IOVADUCT_ORACLE (default ../shared/oracle), or for the committed sample where that is absent.
 * The report goes to standard output, with `--json -` to standard error; its last line is `N passed, N failed, N skipped`.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import type { Command } from 'commander';
import { EXIT, UsageError } from './exit-codes.js';
import { writeJson } from './files.js';

interface ConformOptions {
  readonly only?: string;
  readonly json?: string;
}

interface Failure {
  readonly file: string;
  readonly what: string;
  readonly differences: readonly string[];
}

/** Running totals of one call, and where the report goes. */
class Tally {
  passed = 0;
  readonly failures: Failure[] = [];
  readonly skipped = new Map<string, number>();
  readonly #out: NodeJS.WritableStream;

  constructor(out: NodeJS.WritableStream) {
    this.#out = out;
  }

  get skippedCount(): number {
    return [...this.skipped.values()].reduce((sum, count) => sum + count, 0);
  }

  skip(tag: string): void {
    this.skipped.set(tag, (this.skipped.get(tag) ?? 0) + 1);
  }

  fail(failure: Failure): void {
    this.failures.push(failure);
    this.write(`FAILED ${failure.what} (${basename(failure.file)})`);
    for (const line of failure.differences) this.write(`  ${line}`);
  }

  write(line: string): void {
    this.#out.write(`${line}\n`);
  }
}

function readText(file: string): string {
  try {
    const bytes = readFileSync(file);
    return (bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes).toString();
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function parseJson(file: string, line: number, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const column = Number(/position (\d+)/.exec(message)?.[1] ?? 0) + 1;
    throw new UsageError(`${file}:${line}:${column}: ${message}`);
  }
}

async function conformSmmuv3(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { isRecordedCase, judgeCase } = await import('../conformance/smmuv3.js');
  const { differenceText } = await import('../conformance/smmuv3-excuses.js');
  for (const file of files) {
    const lines = readText(file).split('\n');
    let count = 0;
    for (const [index, line] of lines.entries()) {
      if (line === '') continue;
      const recorded = parseJson(file, index + 1, line);
      if (!isRecordedCase(recorded)) throw new UsageError(`${file}:${index + 1}:1: not a recorded SMMUv3 case`);
      if (options.only !== undefined && !recorded.id.includes(options.only)) continue;
      const { verdict, tag, differences } = judgeCase(recorded);
      count++;
      if (verdict === 'passed') tally.passed++;
      else if (verdict === 'skipped') tally.skip(tag ?? '');
      else tally.fail({ file, what: recorded.id, differences: differences.map(differenceText) });
    }
    process.stderr.write(`${basename(file)}: ${count} cases\n`);
  }
}

async function conformLayouts(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { checkLayouts, isRecordedLayouts } = await import('../conformance/layouts.js');
  for (const file of files) {
    const recorded = parseJson(file, 1, readText(file));
    if (!isRecordedLayouts(recorded)) throw new UsageError(`${file}:1:1: not recorded layouts`);
    const checks = checkLayouts(recorded).filter(
      (check) => options.only === undefined || check.name.includes(options.only),
    );
    for (const { name, difference } of checks) {
      if (difference === undefined) tally.passed++;
      else tally.fail({ file, what: name, differences: [difference] });
    }
    process.stderr.write(`${basename(file)}: ${checks.length} declarations\n`);
  }
}

async function conformHosts(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { judgeHost, recordedGroups } = await import('../conformance/hosts.js');
  for (const file of files) {
    const what = basename(file).replace(/\.json(\.gz)?$/, '');
    if (options.only !== undefined && !what.includes(options.only)) continue;
    const text = readText(file);
    if (recordedGroups(parseJson(file, 1, text)) === undefined)
      throw new UsageError(`${file}:1:1: not a host snapshot`);
    const differences = await judgeHost(file, text);
    if (differences.length === 0) tally.passed++;
    else tally.fail({ file, what, differences });
  }
  process.stderr.write(`${files.length} host snapshots\n`);
}

/** Sequences against mock devices; recordings with real IOMMU models are told and counted as skipped. */
async function conformLinux(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { differenceLines, isHardwareRecord, isRecordedSequence, SequencePlayer } =
    await import('../conformance/linux.js');
  const player = new SequencePlayer();
  for (const file of files) {
    const before = { passed: tally.passed, skipped: tally.skippedCount };
    const partly = player.partlyCompared;
    let count = 0;
    for (const [index, line] of readText(file).split('\n').entries()) {
      if (line === '') continue;
      const recorded = parseJson(file, index + 1, line);
      if (isHardwareRecord(recorded)) {
        tally.skip(HARDWARE_TAG);
        continue;
      }
      if (!isRecordedSequence(recorded)) throw new UsageError(`${file}:${index + 1}:1: not a recorded sequence`);
      const what = `${recorded.profile}/${recorded.seed}`;
      if (options.only !== undefined && !what.includes(options.only)) continue;
      count++;
      if (count % 500 === 0 && process.stderr.isTTY)
        process.stderr.write(`\r${basename(file)}: ${count} sequences ...`);
      const difference = player.judge(recorded);
      if (difference === undefined) tally.passed++;
      else tally.fail({ file, what, differences: differenceLines(difference, recorded.ops) });
    }
    const skipped = tally.skippedCount - before.skipped;
    if (player.partlyCompared > partly)
      tally.write(
        `${player.partlyCompared - partly} answers compared in part: the recording does not determine the rest`,
      );
    if (skipped > 0) tally.write(`skipped ${skipped} lines of ${basename(file)}: ${HARDWARE_REASON}`);
    process.stderr.write(
      `${process.stderr.isTTY ? '\r' : ''}${basename(file)}: ${count} sequences, ${tally.passed - before.passed} passed\n`,
    );
  }
}

const HARDWARE_TAG = 'linux-hardware';
const HARDWARE_REASON = 'recorded with VT-d and AMD-Vi models, which are not replayed yet';

/** Corpora for which there is no replayer. */
const NOT_REPLAYED = ['linux/hardware.jsonl.gz', 'linux/hotplug.jsonl.gz'];

/** Files of a directory of recordings, sorted; says so when there are none. */
function recordings(directory: string, pattern: RegExp): string[] {
  const names = existsSync(directory) ? readdirSync(directory).filter((name) => pattern.test(name)) : [];
  if (names.length === 0) process.stderr.write(`missing: recordings in ${directory}\n`);
  return names.sort().map((name) => join(directory, name));
}

async function conformAll(options: ConformOptions, tally: Tally): Promise<void> {
  const oracle = process.env['IOVADUCT_ORACLE'] ?? '../shared/oracle';
  const isThere = existsSync(oracle);
  const root = isThere ? oracle : fileURLToPath(new URL('../../../test/conformance', import.meta.url));
  if (!isThere) process.stderr.write(`no recordings at ${oracle}: the committed sample judges\n`);
  const layouts = join(root, 'linux', 'layouts.json');
  if (existsSync(layouts)) await conformLayouts([layouts], options, tally);
  else process.stderr.write(`missing: ${layouts}\n`);
  await conformLinux(recordings(join(root, 'linux'), /^mock.*\.jsonl\.gz$/), options, tally);
  await conformSmmuv3(recordings(join(root, 'smmuv3'), /\.jsonl\.gz$/), options, tally);
  await conformHosts(recordings(join(root, 'hosts'), /\.json(\.gz)?$/), options, tally);
  const waiting = NOT_REPLAYED.filter((name) => existsSync(join(root, name)));
  if (waiting.length > 0) process.stderr.write(`not judged here yet: ${waiting.join(', ')}\n`);
}

const REPLAYERS: Readonly<Record<string, typeof conformSmmuv3 | undefined>> = {
  linux: conformLinux,
  smmuv3: conformSmmuv3,
  hosts: conformHosts,
  layouts: conformLayouts,
};

async function report(tally: Tally, json: string | undefined): Promise<void> {
  const { EXCUSES } = await import('../conformance/smmuv3-excuses.js');
  const { passed, failures, skipped, skippedCount } = tally;
  for (const { tag, reason } of EXCUSES) {
    const count = skipped.get(tag);
    if (count !== undefined) tally.write(`skipped ${count} ${tag}: ${reason}`);
  }
  const skippedByTag = Object.fromEntries([...skipped].sort());
  writeJson({ passed, failed: failures.length, skipped: skippedCount, skippedByTag, failures }, json);
  tally.write(`${passed} passed, ${failures.length} failed, ${skippedCount} skipped`);
}

async function conform(corpus: string, files: readonly string[], options: ConformOptions): Promise<void> {
  const tally = new Tally(options.json === '-' ? process.stderr : process.stdout);
  if (corpus === 'all') await conformAll(options, tally);
  else {
    const replayer = REPLAYERS[corpus];
    if (replayer === undefined)
      throw new UsageError(`conform ${corpus}: not built yet; there are ${Object.keys(REPLAYERS).join(', ')} and all`);
    if (files.length === 0) throw new UsageError(`conform ${corpus}: which files?`);
    await replayer(files, options, tally);
  }
  if (tally.passed + tally.failures.length + tally.skippedCount === 0)
    throw new UsageError(`conform ${corpus}: nothing to judge`);
  await report(tally, options.json);
  if (tally.failures.length > 0) process.exitCode = EXIT.failed;
}

/** Adds `conform`. */
export function addConformCommand(program: Command): void {
  program
    .command('conform')
    .description('replay recorded corpora: linux, smmuv3, hosts or layouts FILE…, or all')
    .argument('<corpus>', 'linux, smmuv3, hosts, layouts or all')
    .argument('[files...]', 'recorded files, gzip or not')
    .option('--only <pattern>', 'cases whose name contains this')
    .option('--json <file>', 'write the outcome as JSON; - is standard output')
    .action(conform);
}
