/**
 * The ways on from a step: what lay over what, where its DMA ended, what the log says of trouble while it ran, and which faults
 * the scenario had planted before. Whoever reads of a failure finds its cause behind one of them.
 */
import { durationText } from '../../scenario/units.js';
import type { PageScenario } from './data.js';
import { classOf, rangeWords, wayWords } from './look.js';

/** Links of a kind before the rest is only counted. */
const SHOWN = 4;

/** The ways of a step's DMA: those that ended elsewhere, or all where none did. */
export function waysOfStep({ steps, ways }: PageScenario, step: number): readonly number[] {
  const stray = steps[step]?.ways ?? [];
  if (stray.length > 0) return stray;
  return ways.flatMap((way, index) => (way.step === step && way.direction !== 'msi' ? [index] : []));
}

/** Events of trouble while a step ran. */
export function troublesOfStep({ steps, events }: PageScenario, step: number): readonly number[] {
  const { startNs = 0, endNs = -1 } = steps[step] ?? {};
  return events.flatMap((event, index) =>
    startNs <= event.timeNs && event.timeNs <= endNs && classOf(event) === 'trouble' ? [index] : [],
  );
}

/** Steps before that switched a fault on or off. */
export function faultsBefore({ steps }: PageScenario, step: number): readonly number[] {
  return steps.flatMap(({ kind }, index) => (index < step && kind === 'fault' ? [index] : []));
}

interface LinksProps {
  readonly id: string;
  readonly kind: string;
  readonly found: readonly number[];
  readonly wordsOf: (index: number) => string;
}

function Links({ id, kind, found, wordsOf }: LinksProps) {
  const rest = found.length - SHOWN;
  return (
    <>
      {found.slice(0, SHOWN).map((index) => (
        <a key={index} href={`#${id}/${kind}/${index}`}>
          {wordsOf(index)}
        </a>
      ))}
      {rest > 0 && <span class="note">and {rest} more</span>}
    </>
  );
}

/** All of them. */
export function StepLinks({ scenario, step }: { readonly scenario: PageScenario; readonly step: number }) {
  const { id, steps, marked, ways, events } = scenario;
  const eventWords = (index: number): string => {
    const event = events[index];
    if (event === undefined) return '';
    const { kind, node, timeNs, data } = event;
    const what = data['phase'] ?? data['to'] ?? data['verdict'] ?? data['outcome'];
    return `${kind}${what === undefined ? '' : ` ${String(what)}`} on ${node} at ${durationText(timeNs)}`;
  };
  const faultWords = (index: number): string => `fault in step ${index + 1}: ${steps[index]?.text ?? ''}`;
  return (
    <>
      <Links id={id} kind="range" found={steps[step]?.ranges ?? []} wordsOf={(index) => rangeWords(marked[index])} />
      <Links id={id} kind="way" found={waysOfStep(scenario, step)} wordsOf={(index) => wayWords(ways[index])} />
      <Links id={id} kind="event" found={troublesOfStep(scenario, step)} wordsOf={eventWords} />
      <Links id={id} kind="step" found={faultsBefore(scenario, step)} wordsOf={faultWords} />
    </>
  );
}
