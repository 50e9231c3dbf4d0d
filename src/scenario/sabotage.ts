/**
 * A scenario with the mechanism it is about switched off: what it checks must fail then, else it checks nothing.
 *
 * The file says how under `fails-with`: a fault that is armed before the first step (in one host, in all of them, or in the main
 * process); a host with other memory; or `no-faults`: the scenario's own `fault` steps are what it is about and are left out. Pure.
 */
import type { ScenarioOutcome } from './execute.js';
import { isOfMain, type KernelOnly, type LocatedStep, type Scenario, type ScenarioStep } from './load.js';

/** The scenario that must fail; undefined when the file names no switch. */
export function sabotaged(scenario: Scenario): Scenario | undefined {
  const { failsWith, steps, hosts } = scenario;
  if (failsWith === undefined) return undefined;
  if (scenario.kernelOnly !== undefined) return withHistoricalFault(scenario, scenario.kernelOnly);
  if (failsWith === 'no-faults') return { ...scenario, steps: steps.flatMap(withoutFaults) };
  if ('memory' in failsWith) {
    const { host: name, memory } = failsWith;
    return { ...scenario, hosts: hosts.map((host) => (host.name === name ? { ...host, memory } : host)) };
  }
  const { host, ...fault } = failsWith;
  const at = steps[0]?.at ?? { line: 1, column: 1 };
  const names = isOfMain(fault.fault) ? [undefined] : host === undefined ? hosts.map(({ name }) => name) : [host];
  const armed = names.map((name): LocatedStep => {
    const where = name === undefined ? {} : { host: name };
    return { step: { fault: { ...where, ...fault, off: false } }, at };
  });
  return { ...scenario, steps: [...armed, ...steps] };
}

/** A kernel-only scenario with the fault that it is about in the kernel. */
export function withHistoricalFault(scenario: Scenario, { program, ...rest }: KernelOnly): Scenario {
  const { failsWith } = scenario;
  if (failsWith === undefined || failsWith === 'no-faults' || 'memory' in failsWith) return scenario;
  const { fault, skip, count } = failsWith;
  const armed = { fault, ...(skip === undefined ? {} : { skip }), ...(count === undefined ? {} : { count }) };
  return { ...scenario, kernelOnly: { ...rest, program: { ...program, faults: [...program.faults, armed] } } };
}

function withoutFaults(step: ScenarioStep): ScenarioStep[] {
  if (!('parallel' in step)) return 'fault' in step.step ? [] : [step];
  const parallel = step.parallel.map((branch) => branch.filter((inner) => !('fault' in inner.step)));
  return [{ ...step, parallel }];
}

/** The outcome of a sabotaged scenario turned round: a failed check is what was wanted. What could not be run stays so. */
export function judgeSabotage({ failsWith }: Scenario, outcome: ScenarioOutcome): ScenarioOutcome {
  const name = `it fails ${switchText(failsWith)}`;
  const failed = outcome.checks.filter(({ verdict }) => verdict === 'fail');
  const [first] = failed;
  const hasRun = outcome.failureKind !== 'broken' && outcome.failureKind !== 'unbuildable';
  const verdict = first !== undefined && hasRun ? 'pass' : 'fail';
  const detail =
    first === undefined ? 'every check passed all the same' : `${failed.length} failed: ${first.name}: ${first.detail}`;
  return { ...outcome, verdict, checks: [{ name, verdict, detail }], subjects: [undefined] };
}

function switchText(failsWith: Scenario['failsWith']): string {
  if (failsWith === undefined || failsWith === 'no-faults') return 'without its fault steps';
  return 'memory' in failsWith ? `with other memory in ${failsWith.host}` : `with ${failsWith.fault}`;
}
