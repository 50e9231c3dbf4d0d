/**
 * `iovaduct conform`: recorded corpora as judges.
 *
 * `smmuv3 FILE…` replays recorded vectors, `layouts FILE…` holds the uAPI declarations against compiled ones, `all` does both
 * for everything below $IOVADUCT_ORACLE (default ../shared/oracle), or for the committed sample where that is absent.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import type { Command } from 'commander';
import type { RecordedLayouts } from '../conformance/layouts.js';
import type { RecordedCase } from '../conformance/smmuv3.js';
import { EXIT, UsageError } from './exit-codes.js';

interface ConformOptions {
  readonly only?: string;
  readonly json?: string;
}

interface Failure {
  readonly file: string;
  readonly what: string;
  readonly differences: readonly string[];
}

/** Running totals of one call. */
class Tally {
  passed = 0;
  readonly failures: Failure[] = [];
  readonly skipped = new Map<string, number>();

  get skippedCount(): number {
    return [...this.skipped.values()].reduce((sum, count) => sum + count, 0);
  }

  skip(tag: string): void {
    this.skipped.set(tag, (this.skipped.get(tag) ?? 0) + 1);
  }

  fail(failure: Failure): void {
    this.failures.push(failure);
    process.stdout.write(
      `FAILED ${failure.what} (${basename(failure.file)})\n${failure.differences.map((line) => `  ${line}\n`).join('')}`,
    );
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
    throw new UsageError(`${file}:${line}:1: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function conformSmmuv3(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { judgeCase } = await import('../conformance/smmuv3.js');
  for (const file of files) {
    const lines = readText(file).split('\n');
    let count = 0;
    for (const [index, line] of lines.entries()) {
      if (line === '') continue;
      const recorded = parseJson(file, index + 1, line) as RecordedCase;
      if (options.only !== undefined && !recorded.id.includes(options.only)) continue;
      const { verdict, tag, differences } = judgeCase(recorded);
      count++;
      if (verdict === 'passed') tally.passed++;
      else if (verdict === 'skipped') tally.skip(tag ?? '');
      else tally.fail({ file, what: recorded.id, differences });
    }
    process.stderr.write(`${basename(file)}: ${count} cases\n`);
  }
}

async function conformLayouts(files: readonly string[], options: ConformOptions, tally: Tally): Promise<void> {
  const { checkLayouts } = await import('../conformance/layouts.js');
  for (const file of files) {
    const recorded = parseJson(file, 1, readText(file)) as RecordedLayouts;
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

/** Corpora for which there is no replayer yet. */
const NOT_REPLAYED = ['linux/mock.jsonl.gz', 'linux/hardware.jsonl.gz', 'linux/hotplug.jsonl.gz', 'hosts'];

async function conformAll(options: ConformOptions, tally: Tally): Promise<void> {
  const oracle = process.env['IOVADUCT_ORACLE'] ?? '../shared/oracle';
  const isThere = existsSync(oracle);
  const root = isThere ? oracle : fileURLToPath(new URL('../../../test/conformance', import.meta.url));
  if (!isThere) process.stderr.write(`no recordings at ${oracle}: the committed sample judges\n`);
  const layouts = join(root, 'linux', 'layouts.json');
  if (existsSync(layouts)) await conformLayouts([layouts], options, tally);
  else process.stderr.write(`missing: ${layouts}\n`);
  const smmuv3 = join(root, 'smmuv3');
  const files = existsSync(smmuv3)
    ? readdirSync(smmuv3)
        .filter((name) => name.endsWith('.jsonl.gz'))
        .sort()
    : [];
  if (files.length === 0) process.stderr.write(`missing: ${smmuv3}/*.jsonl.gz\n`);
  await conformSmmuv3(
    files.map((name) => join(smmuv3, name)),
    options,
    tally,
  );
  const waiting = NOT_REPLAYED.filter((name) => existsSync(join(root, name)));
  if (waiting.length > 0) process.stderr.write(`not replayed yet: ${waiting.join(', ')}\n`);
}

async function conform(corpus: string, files: readonly string[], options: ConformOptions): Promise<void> {
  const tally = new Tally();
  if (corpus === 'all') await conformAll(options, tally);
  else if (files.length === 0) throw new UsageError(`conform ${corpus}: which files?`);
  else if (corpus === 'smmuv3') await conformSmmuv3(files, options, tally);
  else if (corpus === 'layouts') await conformLayouts(files, options, tally);
  else throw new UsageError(`conform ${corpus}: not built yet; there are smmuv3, layouts and all`);
  const { passed, failures, skipped, skippedCount } = tally;
  for (const [tag, count] of [...skipped].sort()) process.stdout.write(`skipped ${count} ${tag}\n`);
  if (options.json !== undefined) {
    const text = `${JSON.stringify({ passed, failed: failures.length, skipped: Object.fromEntries(skipped), failures }, undefined, 2)}\n`;
    if (options.json === '-') process.stdout.write(text);
    else writeFileSync(options.json, text);
  }
  process.stdout.write(`${passed} passed, ${failures.length} failed, ${skippedCount} skipped\n`);
  if (failures.length > 0) process.exitCode = EXIT.failed;
}

/** Adds `conform`. */
export function addConformCommand(program: Command): void {
  program
    .command('conform')
    .description('replay recorded corpora: smmuv3 FILE…, layouts FILE…, or all')
    .argument('<corpus>', 'smmuv3, layouts or all')
    .argument('[files...]', 'recorded files, gzip or not')
    .option('--only <pattern>', 'cases whose name contains this')
    .option('--json <file>', 'write the outcome as JSON')
    .action(conform);
}
