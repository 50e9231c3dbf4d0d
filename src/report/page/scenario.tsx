/**
 * One scenario: a head that is always there, and all about it when it is open.
 *
 * The order is the one in which a reader asks: what was checked and what is wrong (with ways on to the step, the ranges, the
 * DMA and the line), then where things lie, when they happened, how the guest moved, where DMA ended, and the file itself.
 */
import { durationText } from '../../scenario/units.js';
import type { PageCheck, PageRule, PageScenario } from './data.js';
import { Dma } from './dma.js';
import { SIGNS, VERDICT_WORDS } from './look.js';
import { AddressMap } from './map.js';
import { Migrations } from './rounds.js';
import { StepLinks } from './step-links.js';
import { Timeline } from './timeline.js';

interface CheckProps {
  readonly scenario: PageScenario;
  readonly check: PageCheck;
  readonly index: number;
  readonly selected: string;
}

function FailedCheck({ scenario, check, index, selected }: CheckProps) {
  const { id, file, steps } = scenario;
  const step = check.step === undefined ? undefined : steps[check.step];
  const key = `check/${index}`;
  return (
    <li
      class={`check ${check.verdict} ${selected === key ? 'selected' : ''}`}
      data-at={`${id}/${key}`}
      tabIndex={selected === key ? 0 : -1}
    >
      <p>
        <b>
          {SIGNS[check.verdict]} {check.name}
        </b>
      </p>
      <p>{check.detail}</p>
      {step?.explanation !== undefined && <p class="why">{step.explanation}</p>}
      <p class="ways-on">
        {check.line !== undefined && (
          <a href={`#${id}/line/${check.line}`}>
            {file}:{check.line}:{check.column}
          </a>
        )}
        {step !== undefined && (
          <a href={`#${id}/step/${check.step ?? 0}`}>
            step {(check.step ?? 0) + 1} in the timeline: {step.kind}
          </a>
        )}
        {check.step !== undefined && <StepLinks scenario={scenario} step={check.step} />}
      </p>
    </li>
  );
}

function Checks({ scenario, selected }: { readonly scenario: PageScenario; readonly selected: string }) {
  return (
    <section class="part">
      <h3>Checks</h3>
      <ul class="checks">
        {scenario.checks.map((check, index) =>
          check.verdict === 'pass' ? (
            <li key={index} class="check pass" data-at={`${scenario.id}/check/${index}`}>
              <b>
                {SIGNS.pass} {check.name}
              </b>
              {check.detail === '' ? '' : ` ${check.detail}`}{' '}
              {check.step !== undefined && <a href={`#${scenario.id}/step/${check.step}`}>step {check.step + 1}</a>}
            </li>
          ) : (
            <FailedCheck key={index} scenario={scenario} check={check} index={index} selected={selected} />
          ),
        )}
      </ul>
    </section>
  );
}

function StepTable({ scenario, selected }: { readonly scenario: PageScenario; readonly selected: string }) {
  const { id, steps } = scenario;
  return (
    <details>
      <summary>Steps as a table ({steps.length})</summary>
      <div class="wide">
        <table>
          <caption class="unseen">Steps</caption>
          <thead>
            <tr>
              <th>Line</th>
              <th>Step</th>
              <th>At</th>
              <th>Took</th>
              <th>Verdict</th>
              <th>What</th>
            </tr>
          </thead>
          <tbody>
            {steps.map((step, index) => (
              <tr
                key={index}
                class={`${step.verdict === 'ok' ? '' : 'bad'} ${selected === `step/${index}` ? 'selected' : ''}`}
              >
                <td>
                  <a href={`#${id}/line/${step.line}`}>{step.line}</a>
                </td>
                <td>{step.kind}</td>
                <td>{durationText(step.startNs)}</td>
                <td>{durationText(step.endNs - step.startNs)}</td>
                <td>{step.verdict}</td>
                <td>
                  {step.text}
                  {step.conflicts.map((conflict, number) => (
                    <div key={number}>
                      <code>{conflict}</code>
                    </div>
                  ))}
                  {step.explanation !== undefined && <div class="why">{step.explanation}</div>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

function Source({ scenario, selected }: { readonly scenario: PageScenario; readonly selected: string }) {
  const { id, file, source, checks } = scenario;
  const failed = new Set(
    checks.flatMap(({ verdict, line }) => (verdict === 'pass' || line === undefined ? [] : [line])),
  );
  return (
    <details>
      <summary>
        The file, <code>{file}</code>
      </summary>
      <pre class="source">
        {source
          .trimEnd()
          .split('\n')
          .map((text, index) => {
            const key = `line/${index + 1}`;
            const look = `${selected === key ? 'selected' : ''} ${failed.has(index + 1) ? 'failed' : ''}`;
            return (
              <span key={key} class={`line ${look}`} data-at={`${id}/${key}`} tabIndex={selected === key ? 0 : -1}>
                <span class="number">
                  {failed.has(index + 1) ? '✖ ' : ''}
                  {index + 1}
                </span>
                {`${text}\n`}
              </span>
            );
          })}
      </pre>
    </details>
  );
}

function Body({ scenario, selected }: { readonly scenario: PageScenario; readonly selected: string }) {
  return (
    <div class="body">
      <p class="facts">
        {scenario.headline}
        <br />
        <span class="note">
          <code>{scenario.file}</code> · {durationText(scenario.virtualNs)} of virtual time · digest{' '}
          <code>{scenario.digest.slice(0, 16)}</code> · <a href={`#${scenario.id}`}>link</a>
        </span>
      </p>
      <Checks scenario={scenario} selected={selected} />
      <AddressMap scenario={scenario} selected={selected} />
      <Timeline scenario={scenario} selected={selected} />
      <Migrations scenario={scenario} />
      <Dma scenario={scenario} selected={selected} />
      <Rules scenario={scenario} />
      <section class="part">
        <h3>Steps and file</h3>
        <StepTable scenario={scenario} selected={selected} />
        <Source scenario={scenario} selected={selected} />
      </section>
    </div>
  );
}

const RULE_WORDS = { pass: 'held', fail: 'broken', inconclusive: 'not put to the test' } as const;

/** The rules that every run is held against. */
function Rules({ scenario: { rules } }: { readonly scenario: PageScenario }) {
  const count = (verdict: PageRule['verdict']): number => rules.filter((rule) => rule.verdict === verdict).length;
  const broken = count('fail');
  return (
    <details class="part" open={broken > 0}>
      <summary>
        Rules: {count('pass')} held, {broken > 0 && `${broken} broken, `}
        {count('inconclusive')} not put to the test
      </summary>
      <table>
        <thead>
          <tr>
            <th>rule</th>
            <th>what it says</th>
            <th>verdict</th>
            <th class="number">looked at</th>
          </tr>
        </thead>
        <tbody>
          {rules.map(({ id, text, verdict, looks }) => (
            <tr key={id} class={verdict}>
              <td>
                <code>{id}</code>
              </td>
              <td>{text}</td>
              <td>{RULE_WORDS[verdict]}</td>
              <td class="number">{looks}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

interface ScenarioProps {
  readonly scenario: PageScenario;
  readonly isOpen: boolean;
  readonly onToggle: () => void;
  /** The id that covers are narrowed to. */
  readonly covers: string;
  readonly onCovers: (id: string) => void;
  readonly selected: string;
}

/** A scenario in the list. */
export function Scenario({ scenario, isOpen, onToggle, covers, onCovers, selected }: ScenarioProps) {
  const { id, name, title, verdict } = scenario;
  const failed = scenario.checks.filter((check) => check.verdict !== 'pass');
  return (
    <article class={`scenario ${verdict}`} aria-labelledby={`head-${id}`}>
      <div class="head">
        <h2 id={`head-${id}`}>
          <button type="button" aria-expanded={isOpen} data-at={`${id}/`} onClick={onToggle}>
            <span class="sign" aria-label={VERDICT_WORDS[verdict]} role="img">
              {SIGNS[verdict]}
            </span>
            <span class="name">{name}</span> <span class="title">{title}</span>
          </button>
        </h2>
        <p class="chips">
          <span class="note">{scenario.family}</span>
          {scenario.covers.map((cover) => (
            <button
              key={cover}
              type="button"
              class="chip"
              aria-pressed={covers === cover}
              title={`only scenarios that cover ${cover}`}
              onClick={() => onCovers(covers === cover ? '' : cover)}
            >
              {cover}
            </button>
          ))}
        </p>
        {failed.length > 0 && !isOpen && (
          <ul class="causes" aria-label={`Failed checks of ${name}`}>
            {failed.map((check, index) => (
              <li key={index}>
                <a href={`#${id}/check/${index}`}>
                  {SIGNS[check.verdict]} {check.name}
                </a>{' '}
                {check.detail}
              </li>
            ))}
          </ul>
        )}
      </div>
      {isOpen && <Body scenario={scenario} selected={selected} />}
    </article>
  );
}
