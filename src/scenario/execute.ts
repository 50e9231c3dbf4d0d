/**
 * One run of one scenario: scenario, seed, placement → outcome.
 *
 * The outcome is plain data (it crosses threads and is what every report is made of). A run whose main task did not end by
 * itself becomes a failed or inconclusive check, so nothing that went wrong below is lost.
 */
import type { HostDescription } from '../hardware/description.js';
import type { ProgramOutcome } from '../host/run-program.js';
import { signatureOf } from '../runtime/signature.js';
import { HistoryDigest } from '../runtime/events.js';
import { givenUpIn, type InvariantId, type InvariantReport } from '../runtime/invariants.js';
import type { ScheduleSpec } from '../runtime/node-runtime.js';
import type { RunFailure } from '../testbed/conductor.js';
import { runProgramAt } from '../testbed/run-program.js';
import { run, type Placement } from '../testbed/run.js';
import { HT_RANGE, X86_MSI_RANGE } from '../uapi/iommu-ranges.js';
import type { KernelOnly, Scenario } from './load.js';
import { EXPECTED_FAILURE, RUN_ENDS, type Check, type CheckVerdict } from './results.js';
import { ScenarioRunner, type GuestLog, type Injection, type ScenarioRecord, type StepLog } from './runner.js';
import { subjectsOf } from './subjects.js';
import { timelineOf, type Timeline } from './timeline.js';

/** How to run. */
export interface ExecuteOptions {
  readonly seed: number;
  readonly placement: Placement;
  /** Choices of an earlier run, by node: repeats its schedule. */
  readonly recordedChoices?: Readonly<Record<string, readonly number[]>>;
  /** A fault that strikes one node, once it has booted; what is left behind is counted then. */
  readonly inject?: Injection;
  /** The schedule of a node, where it is none of the scenario's own. */
  readonly scheduleOf?: (node: string) => ScheduleSpec;
  /** Whether the history is wanted, with its digest, its lines and the timeline; it is when nothing is said. */
  readonly keepsHistory?: boolean;
  readonly onProgress?: (virtualNs: number) => void;
}

/** A host as reports need it. */
interface HostSummary {
  readonly name: string;
  readonly title: string;
  readonly reservedRegions: readonly {
    readonly start: bigint;
    readonly last: bigint;
    readonly type: string;
    readonly owner: string;
    readonly devices?: readonly string[];
  }[];
  /** One beyond the highest IOVA an ordinary device can use. */
  readonly apertureBits: number;
}

/** Everything a run of a scenario came to. */
export interface ScenarioOutcome {
  readonly name: string;
  readonly file: string;
  /** The file's text, for reports that show it. */
  readonly text: string;
  readonly title: string;
  readonly covers: readonly string[];
  readonly seed: number;
  readonly verdict: CheckVerdict;
  readonly digest: string;
  readonly virtualNs: number;
  readonly checks: readonly Check[];
  readonly steps: readonly StepLog[];
  /** The step that each check is about, by its index. */
  readonly subjects: readonly (number | undefined)[];
  readonly guests: readonly GuestLog[];
  readonly hosts: readonly HostSummary[];
  readonly transactions: ScenarioRecord['transactions'];
  readonly timeline: Timeline;
  /** How often each rule was looked at. */
  readonly invariants: readonly InvariantReport[];
  /** The rule that ended the run. */
  readonly brokenRule: InvariantId | undefined;
  /** Most tasks that one node had in the run. */
  readonly tasks: number;
  /** How the run ended, if not by itself. */
  readonly failureKind: RunFailure['kind'] | undefined;
}

/** What replay needs besides the scenario. */
export interface RunTrace {
  readonly lines: readonly string[];
  readonly choices: Readonly<Record<string, readonly number[]>>;
  /** What was left when everybody had gone; only where a fault was injected. */
  readonly leftover: Readonly<Record<string, number>>;
}

function failureCheck(failure: RunFailure): Check {
  const where = failure.node === 'main' ? 'the run' : `host ${failure.node}`;
  if (failure.rule !== undefined)
    return { name: failure.rule, verdict: 'fail', detail: `in ${where}: ${failure.message}` };
  if (failure.kind === 'unbuildable')
    return { name: RUN_ENDS, verdict: 'fail', detail: `${where} cannot be built: ${failure.message}` };
  const verdict: CheckVerdict = failure.kind === 'time-limit' ? 'inconclusive' : 'fail';
  return { name: RUN_ENDS, verdict, detail: `${failure.kind} in ${where}: ${failure.message}` };
}

/** A rule that was not judged to the end. */
function givenUpChecks(invariants: readonly InvariantReport[]): Check[] {
  const rule = givenUpIn(invariants);
  return rule === undefined ? [] : [{ name: rule.id, verdict: 'inconclusive', detail: rule.why }];
}

/** What checks come to together: the worst of them. */
export function verdictOf(checks: readonly Check[]): CheckVerdict {
  if (checks.some((check) => check.verdict === 'fail')) return 'fail';
  return checks.some((check) => check.verdict === 'inconclusive') ? 'inconclusive' : 'pass';
}

/** Ranges of a host that a reader wants to see over guest RAM: what its kernel reserves, and what its fabric takes besides. */
function rangesOf(host: HostDescription): HostSummary['reservedRegions'] {
  const drivers = host.iommus.flatMap(({ name, kind, softwareMsi, probedRegions, ignoresHtRange }) => {
    const isX86 = kind === 'intel-vtd' || kind === 'amd-vi';
    return [
      ...(softwareMsi === undefined ? [] : [{ ...softwareMsi, type: 'software-msi', owner: name }]),
      ...(probedRegions ?? []),
      ...(isX86 ? [{ ...X86_MSI_RANGE, type: 'msi', owner: 'x86 MSI window' }] : []),
      ...(kind === 'amd-vi' && ignoresHtRange !== true
        ? [{ ...HT_RANGE, type: 'reserved', owner: 'HyperTransport' }]
        : []),
    ];
  });
  const fabric = host.hostBridges.flatMap(({ name, windows, inbound, abortRanges }) => [
    ...windows.map(({ start, last }) => ({ start, last, type: 'window', owner: `window of ${name}` })),
    ...(inbound ?? []).map(({ start, last }) => ({ start, last, type: 'dma-range', owner: `dma-ranges of ${name}` })),
    ...(abortRanges ?? []).map(({ start, last }) => ({ start, last, type: 'abort', owner: `${name} aborts` })),
  ]);
  const doorbells = host.msiControllers
    .filter(({ kind }) => kind === 'in-rc')
    .map(({ name, base, sizeBytes = 4096 }) => ({
      start: base,
      last: base + BigInt(sizeBytes) - 1n,
      type: 'doorbell',
      owner: `${name}, inside the root complex`,
    }));
  const bars = host.functions.flatMap(({ bdf, absent, bars: own }) =>
    (absent === true ? [] : (own ?? [])).flatMap(({ index, start, sizeBytes }) =>
      start === undefined
        ? []
        : [{ start, last: start + BigInt(sizeBytes) - 1n, type: 'bar', owner: `${bdf} BAR ${index}` }],
    ),
  );
  return [...drivers, ...host.reservedRegions, ...doorbells, ...bars, ...fabric];
}

function summarise(scenario: Scenario): HostSummary[] {
  return scenario.hosts.map((host) => ({
    name: host.name,
    title: host.title,
    reservedRegions: rangesOf(host),
    apertureBits: Math.min(...host.iommus.map((smmu) => smmu.inputBits), 64),
  }));
}

/** The schedule that the caller or the scenario's file says. */
function scheduleOption({ deviations }: Scenario, { scheduleOf }: ExecuteOptions): Pick<ExecuteOptions, 'scheduleOf'> {
  if (scheduleOf !== undefined) return { scheduleOf };
  if (deviations === undefined) return {};
  return { scheduleOf: (node) => ({ strategy: 'deviating', deviations: deviations[node] ?? [] }) };
}

/** Whether a scenario failed as its file says it must; `failure` is how it did, `signature` of what that is. */
function expectedFailure(wanted: string, failure: string | undefined, signature: string | undefined): Check {
  if (failure === undefined) return { name: 'expected failure did not occur', verdict: 'fail', detail: wanted };
  if (signature === wanted) return { name: EXPECTED_FAILURE, verdict: 'pass', detail: failure };
  return { name: 'another failure than expected', verdict: 'fail', detail: `${failure}; expected ${wanted}` };
}

/** Checks of a scenario that must fail in one way, as one check of whether it did. */
function judgeFailure(wanted: string | undefined, checks: readonly Check[]): readonly Check[] {
  if (wanted === undefined) return checks;
  const failed = checks.find(({ verdict }) => verdict === 'fail');
  const failure = failed && `${failed.name}: ${failed.detail}`;
  return [expectedFailure(wanted, failure, failure && signatureOf(failure))];
}

/** Runs a scenario. Never rejects for what happens inside the run. */
export async function executeScenario(
  scenario: Scenario,
  options: ExecuteOptions,
): Promise<{ readonly outcome: ScenarioOutcome; readonly trace: RunTrace }> {
  if (scenario.kernelOnly !== undefined) return await executeKernelOnly(scenario, scenario.kernelOnly, options);
  let runner: ScenarioRunner | undefined;
  const finished = await run({
    seed: options.seed,
    placement: options.placement,
    strategy: scenario.schedule,
    hosts: scenario.hosts,
    links: scenario.links,
    main: (lab) => (runner = new ScenarioRunner(scenario, lab, options.inject)).main(),
    ...(options.recordedChoices === undefined ? {} : { recordedChoices: options.recordedChoices }),
    ...(scenario.limitNs === undefined ? {} : { limitNs: scenario.limitNs }),
    ...scheduleOption(scenario, options),
    ...(options.keepsHistory === undefined ? {} : { keepsHistory: options.keepsHistory }),
    ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
  });
  const record = runner?.record;
  const failed = finished.failure === undefined ? [] : [failureCheck(finished.failure)];
  const found = [...(record?.checks ?? []), ...failed, ...givenUpChecks(finished.invariants)];
  const checks = options.scheduleOf === undefined ? judgeFailure(scenario.fails, found) : found;
  const outcome: ScenarioOutcome = {
    name: scenario.name,
    file: scenario.file,
    text: scenario.text,
    title: scenario.title,
    covers: scenario.covers,
    seed: options.seed,
    verdict: verdictOf(checks),
    digest: finished.digest,
    virtualNs: finished.virtualNs,
    checks,
    steps: record?.steps ?? [],
    subjects: subjectsOf(scenario, checks, record?.steps ?? []),
    guests: record?.guests ?? [],
    hosts: summarise(scenario),
    transactions: record?.transactions ?? [],
    timeline: timelineOf(finished.events),
    invariants: finished.invariants,
    brokenRule: finished.failure?.rule,
    tasks: finished.tasks,
    failureKind: finished.failure?.kind,
  };
  return {
    outcome,
    trace: { lines: finished.lines, choices: finished.choices, leftover: record?.leftover ?? {} },
  };
}

/** The verdict on a program's run: whether it broke a rule, and whether it was meant to. */
function checkOf({ failure, invariants }: ProgramOutcome, wanted: string | undefined, file: string): Check {
  if (wanted !== undefined) return expectedFailure(wanted, failure?.message, failure?.signature);
  const [givenUp] = givenUpChecks(invariants);
  if (failure === undefined) return givenUp ?? { name: 'no rule is broken', verdict: 'pass', detail: '' };
  // A message begins with what it is about: the rule's id, or words.
  const [what = '', ...rest] = failure.message.split(': ');
  const where = failure.id === undefined || failure.task === '-' ? '' : ` (task ${failure.task})`;
  const place = failure.line === undefined ? '' : ` at ${file}:${failure.line}`;
  return { name: failure.id ?? what, verdict: 'fail', detail: `${rest.join(': ') || what}${where}${place}` };
}

async function executeKernelOnly(
  scenario: Scenario,
  { program }: KernelOnly,
  { seed, placement, recordedChoices }: ExecuteOptions,
): Promise<{ readonly outcome: ScenarioOutcome; readonly trace: RunTrace }> {
  const choices = recordedChoices?.['kernel'];
  const ran = await runProgramAt(placement, {
    program,
    seed,
    schedule:
      choices === undefined
        ? { strategy: 'deviating', deviations: scenario.deviations?.['kernel'] ?? [] }
        : { strategy: 'recorded', of: 'explored', choices },
  });
  const digest = new HistoryDigest();
  const lines = ran.events.map((event) => digest.add(event));
  const checks = [checkOf(ran, scenario.fails, scenario.file)];
  // The address space that is made when the file makes none is no step of it.
  const said = ran.results.filter(({ call }) => call.line !== undefined);
  const steps = said.map(({ task, call, text, startNs, endNs }): StepLog => ({
    kind: call.op,
    at: { line: call.line ?? 1, column: 1 },
    startNs,
    endNs,
    result: { verdict: text === 'ok' ? 'ok' : 'refused', text: `${task}: ${call.op} ${text}` },
  }));
  const outcome: ScenarioOutcome = {
    name: scenario.name,
    file: scenario.file,
    text: scenario.text,
    title: scenario.title,
    covers: scenario.covers,
    seed,
    verdict: verdictOf(checks),
    digest: digest.value(),
    virtualNs: ran.virtualNs,
    checks,
    steps,
    subjects: [undefined],
    guests: [],
    hosts: [],
    transactions: [],
    timeline: timelineOf(ran.events),
    invariants: ran.invariants,
    brokenRule: ran.failure?.id,
    tasks: ran.tasks,
    failureKind: undefined,
  };
  return { outcome, trace: { lines, choices: { kernel: ran.choices }, leftover: ran.leftover } };
}
