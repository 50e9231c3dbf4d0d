/**
 * `iovaduct stress`: free-running threads on one host's memory, checked as they go.
 *
 * Nothing here repeats: a seed fixes what each thread wants, not who comes first. What a run finds is checked against its own
 * history. Exit status: 0 held, 1 something that must not be, 2 not decided: the address space had to be given up
 * after a death, or something that was asked for did not happen.
 */
import { Option, type Command } from 'commander';
import { RandomStream } from '../runtime/random.js';
import { reportJson, type StressProgress, type StressReport, type Verdict } from '../stress/report.js';
import { iovaText } from '../stress/words.js';
import { errnoText } from '../uapi/errno.js';
import { MAX_RUNNING, STRESS_FAULTS, type StressFault, type StressOptions } from '../stress/options.js';
import { many } from '../scenario/units.js';
import { EXIT, UsageError } from './exit-codes.js';
import { checkOutputs, writeJson } from './files.js';
import { interruptible } from './interrupt.js';
import { wholeNumber } from './options.js';
import { LiveLine } from './progress.js';

interface StressFlags {
  readonly threads: number;
  readonly devices: number;
  readonly seconds: number;
  readonly seed: number;
  readonly locks: StressOptions['locks'];
  readonly invalidation: StressOptions['invalidation'];
  readonly pauses: boolean;
  readonly fault: readonly StressFault[];
  readonly killAfter?: number;
  readonly json?: string;
}

const STATUS: Readonly<Record<Verdict, number>> = {
  held: EXIT.ok,
  violated: EXIT.failed,
  inconclusive: EXIT.inconclusive,
};

/** Longest time between two lines of progress in a pipe, milliseconds. */
const PLAIN_MS = 10_000;

function optionsOf(flags: StressFlags): StressOptions {
  const { threads, devices, seconds, seed, locks, invalidation, pauses, fault, killAfter } = flags;
  if (threads + devices > MAX_RUNNING) throw new UsageError(`stress: at most ${MAX_RUNNING} threads and devices`);
  const client = new RandomStream(seed, 'stress/victim').below(threads);
  return {
    seed,
    threads,
    devices,
    seconds,
    operations: Infinity,
    locks,
    invalidation,
    faults: fault,
    kills: killAfter === undefined ? [] : [{ at: 'time', client, afterMs: killAfter }],
    pauses,
    workload: 'mixed',
  };
}

function progressText({ elapsedMs, segments, operations, dmas, violations }: StressProgress): string {
  const seconds = (elapsedMs / 1000).toFixed(0);
  return `${seconds} s: ${operations} operations, ${dmas} DMAs, ${segments} segments checked, ${violations} alarms`;
}

function windowLine({ window, counts }: StressReport): string {
  const mean = (total: number): number => (window.unmaps === 0 ? 0 : total / window.unmaps);
  const ms = (ns: number): string => `${(ns / 1e6).toFixed(2)} ms`;
  return (
    `exposure: ${counts.exposed} DMAs went through translations whose unmap had returned; from there to the flush ` +
    `${ms(mean(window.totalNs))} (at most ${ms(window.maxNs)}), ` +
    `${mean(window.totalDmas).toFixed(0)} DMAs (at most ${window.maxDmas})`
  );
}

/** A report in words. */
function stressText(report: StressReport): string {
  const { options, counts, operations } = report;
  const failed = [...counts.failed].sort((a, b) => b[1] - a[1]).map(([errno, count]) => `${errnoText(errno)} ${count}`);
  const faults = options.faults.map((fault) => `, fault ${fault} on`).join('');
  const lines = [
    `${report.verdict}${report.reason === undefined ? '' : `: ${report.reason}`}`,
    `${many(operations, 'operation')} of ${many(options.threads, 'client')}, ` +
      `${many(counts.dmas, 'DMA')} of ${many(options.devices, 'device')} in ` +
      `${(report.wallMs / 1000).toFixed(1)} s; seed ${options.seed}, ${options.locks} locks, ${options.invalidation} invalidation${faults}`,
    `maps ${counts.maps}, copies ${counts.copies}, unmaps ${counts.unmaps} (${counts.pagesUnmapped} pages), ` +
      `dirty reads ${counts.dirtyReads}, faulting DMAs ${counts.dmaFaults}; failed: ${failed.join(', ') || 'none'}`,
  ];
  if (options.invalidation === 'deferred') lines.push(windowLine(report));
  for (const { client, operation, gate, held, outcome, areas } of report.deaths) {
    const locks = held.length === 0 ? 'no lock' : held.join(', ');
    const what =
      outcome === 'repaired'
        ? `${many(areas, 'area')} taken back, the others went on`
        : 'the address space was given up';
    const where = operation === '-' ? `between two operations, after ${gate},` : `in ${operation} at ${gate}`;
    lines.push(`client ${client} died ${where} with ${locks}: ${what}`);
  }
  for (const [errno, threads] of report.gaveUp) {
    lines.push(`${many(threads, 'other thread')} ended with ${errnoText(errno)}`);
  }
  for (const { kind, page, detail } of report.violations) {
    lines.push(`ALARM ${kind}${page < 0 ? '' : ` at IOVA ${iovaText(page)}`}: ${detail}`);
  }
  const more = report.violationCount - report.violations.length;
  if (more > 0) lines.push(`... and ${more} more`);
  return `${lines.join('\n')}\n`;
}

async function stress(flags: StressFlags): Promise<void> {
  const options = optionsOf(flags);
  checkOutputs([flags.json]);
  // Loaded only here: no other command has kernel or arena in its main thread.
  const { runStress } = await import('../stress/supervisor.js');
  const live = new LiveLine(process.stderr, PLAIN_MS);
  await interruptible(async (signal) => {
    const report = await runStress(options, { tell: (progress) => live.show(progressText(progress)), signal });
    live.clear();
    writeJson({ ...reportJson(report), interrupted: signal.aborted }, flags.json);
    if (flags.json !== '-') process.stdout.write(`${signal.aborted ? 'interrupted: ' : ''}${stressText(report)}`);
    process.exitCode = STATUS[report.verdict];
  });
}

/** Adds `stress`. */
export function addStressCommand(program: Command): void {
  program
    .command('stress')
    .description('map, unmap and do DMA on one host from free-running threads, and check what they saw')
    .option('--threads <n>', 'client threads', wholeNumber(1), 2)
    .option('--devices <n>', 'devices, one thread each', wholeNumber(0), 2)
    .option('--seconds <s>', 'how long', wholeNumber(1), 10)
    .option('--seed <n>', 'what every thread wants to do', wholeNumber(0), 1)
    .addOption(
      new Option('--locks <kind>', "the kernel's, or one for each window of IOVAs")
        .choices(['kernel', 'sharded'])
        .default('kernel'),
    )
    .addOption(
      new Option('--invalidation <mode>', 'at every unmap, or of many at once (flush queue)')
        .choices(['strict', 'deferred'])
        .default('strict'),
    )
    .option('--no-pauses', 'do not pause at random places to widen races')
    .option('--kill-after <ms>', 'kill a client after so many milliseconds', wholeNumber(0))
    .addOption(
      new Option('--fault <what...>', 'break something: it must be found')
        .choices(Object.keys(STRESS_FAULTS))
        .default([], 'nothing'),
    )
    .option('--json <file>', 'write the report as JSON; - is standard output')
    .action(stress);
}
