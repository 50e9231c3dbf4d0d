/** What there is to say of the step under the cursor: who is where, what was touched, how the machine looks now. */
import { useMemo } from 'preact/hooks';
import type { Race } from '../../explore/race.js';
import { viewAt, wordText, type Trace, type TraceAccess, type TraceStep } from '../../explore/trace.js';
import { lockClasses, lockColour } from './lanes.js';
import { statesAt, touch, type Lane } from './model.js';
import { drawnParts, type DrawnPart } from './tables.js';

interface DetailsProps {
  readonly trace: Trace;
  readonly race: Race;
  readonly lanes: readonly Lane[];
  readonly cursor: number;
  readonly word: number | undefined;
  /** The report as text. */
  readonly text: string;
  readonly onWord: (word: number) => void;
  readonly onMove: (at: number) => void;
}

const SIGNS = { same: '', added: '+', changed: '~', removed: '−' } as const;
/** The testbed's own words, of no interest to who looks for a race. */
const DULL = /^(mutex|rwsem|waiters|checks of|table checks|name|machine)/;

export function Details(props: DetailsProps) {
  const { trace, cursor, lanes, text } = props;
  const step = trace.steps[cursor];
  const parts = useMemo(
    () => drawnParts(step === undefined ? trace.start : viewAt(trace, step.index - 1), viewAt(trace, step?.index ?? 0)),
    [trace, step],
  );
  if (step === undefined) return null;
  const call = trace.calls.find(
    ({ task, first, last }) => task === step.task && first <= step.index && step.index <= last,
  );
  return (
    <section class="details" aria-label="step">
      <h2>
        step {step.index} · {lanes.find(({ task }) => task === step.task)?.name} · {step.timeNs} ns
      </h2>
      <p>
        <code>{step.from}</code> → <code>{step.to}</code>
        {call !== undefined && ` · in ${call.op}${call.answer === undefined ? '' : `, which answers ${call.answer}`}`}
      </p>
      <Choices step={step} />
      <Pairs {...props} />
      <States {...props} />
      <Accesses step={step} {...props} />
      {step.events.length > 0 && (
        <>
          <h3>Recorded</h3>
          <pre class="events">{step.events.map((line) => line.split(' ').slice(3).join(' ')).join('\n')}</pre>
        </>
      )}
      <h3>The machine after this step</h3>
      {parts.map((part) => (
        <Part key={part.name} part={part} />
      ))}
      {props.word !== undefined && <WordHistory {...props} word={props.word} />}
      <details>
        <summary>The report as text</summary>
        <pre>{text}</pre>
      </details>
    </section>
  );
}

function Choices({ step: { choices } }: { step: TraceStep }) {
  return (
    <>
      {choices.map(({ at, of, chosen, default: wanted }) => (
        <p key={at} class={chosen === wanted ? 'note' : 'deviates'}>
          {chosen === wanted ? '◇' : '◆'} choice {at} of {of.join(', ')}: <b>{of[chosen]}</b>
          {chosen === wanted ? ', the default' : ` instead of ${of[wanted] ?? ''}`}
        </p>
      ))}
    </>
  );
}

function Pairs({ trace, race, onMove }: DetailsProps) {
  if (race.pairs.length === 0) return null;
  return (
    <p class="pairs">
      {race.pairs.map(({ word, first, second }, i) => (
        <span key={word}>
          <b>R{i + 1}</b> {wordText(trace.words[word] ?? { object: '', field: '' })}:{' '}
          {[first, second].map(({ at, access }) => (
            <button key={at} type="button" onClick={() => onMove(at)}>
              {access.kind} at {trace.steps[at]?.index}
            </button>
          ))}
        </span>
      ))}
    </p>
  );
}

function States({ trace, lanes, cursor }: DetailsProps) {
  const states = useMemo(() => statesAt(trace, lanes, cursor), [trace, lanes, cursor]);
  return (
    <>
      <h3>Who holds and waits for what</h3>
      <table>
        <tbody>
          {states.map(({ lane, words, holds, isWaiting }) => (
            <tr key={lane.task} class={lane.task === trace.steps[cursor]?.task ? 'current' : ''}>
              <th scope="row">{lane.name}</th>
              <td class={isWaiting ? 'waits' : ''}>{words}</td>
              <td>
                {holds.map(({ lock, shared }) => (
                  <span key={lock} class="held">
                    <Swatch trace={trace} lockClass={trace.locks[lock]?.lockClass ?? ''} shared={shared} />
                    {trace.locks[lock]?.label}
                    {shared && ' (read)'}
                  </span>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="note">
        Bars beside the lanes:{' '}
        {lockClasses(trace).map((lockClass, i) => (
          <span key={lockClass}>
            <Swatch trace={trace} lockClass={lockClass} shared={false} />
            {i + 1} {lockClass};{' '}
          </span>
        ))}
        hollow: for reading
      </p>
    </>
  );
}

function Swatch({
  trace,
  lockClass,
  shared,
}: {
  readonly trace: Trace;
  readonly lockClass: string;
  readonly shared: boolean;
}) {
  const colour = lockColour(trace, lockClass);
  return <i class="swatch" style={{ borderColor: colour, background: shared ? 'none' : colour }} />;
}

/** Accesses of pages that differ in nothing but the page are one row. */
function grouped(trace: Trace, accesses: readonly TraceAccess[]): { access: TraceAccess; pages: number }[] {
  const groups = new Map<string, { access: TraceAccess; pages: number }>();
  for (const access of accesses) {
    const { object = '', field = '' } = trace.words[access.word] ?? {};
    const key = JSON.stringify([object, field.replace(/0x.*/, '0x'), access.kind, access.before, access.after]);
    const known = groups.get(key);
    if (known === undefined) groups.set(key, { access, pages: 1 });
    else known.pages++;
  }
  return [...groups.values()];
}

function Accesses({ step, trace, word, onWord }: DetailsProps & { readonly step: TraceStep }) {
  const order = { write: 0, update: 1, test: 2, read: 3 } as const;
  const accesses = step.accesses
    .filter((access) => !DULL.test(trace.words[access.word]?.object ?? ''))
    .sort((a, b) => order[a.kind] - order[b.kind]);
  return (
    <>
      <h3>Touched words</h3>
      {accesses.length === 0 && <p class="note">none</p>}
      <table class="accesses">
        <tbody>
          {grouped(trace, accesses).map(({ access: { word: index, kind, before, after, held }, pages }) => (
            <tr key={index} class={kind === 'read' ? '' : 'changes'}>
              <td>{kind}</td>
              <td>
                <button type="button" class="word" aria-pressed={index === word} onClick={() => onWord(index)}>
                  {wordText(trace.words[index] ?? { object: '', field: '' })}
                </button>
                {pages > 1 && <span class="note"> and {pages - 1} more pages</span>}
              </td>
              <td>{before === after ? before : `${before ?? '∅'} → ${after ?? '∅'}`}</td>
              <td class="note">
                {held
                  .map(
                    (lock) => `${trace.locks[lock < 0 ? -1 - lock : lock]?.lockClass ?? ''}${lock < 0 ? '(read)' : ''}`,
                  )
                  .join(', ')}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {step.more !== undefined && <p class="note">and {step.more} more</p>}
    </>
  );
}

function Part({ part }: { readonly part: DrawnPart }) {
  const { name, columns, rows, isChanged } = part;
  return (
    <table class={isChanged ? 'part changed' : 'part'} data-part={name}>
      <caption>
        {name}
        {isChanged && <span class="deviation"> changed in this step</span>}
      </caption>
      {rows.length > 0 && (
        <thead>
          <tr>
            <th class="unseen">change</th>
            {columns.map((column) => (
              <th key={column} scope="col">
                {column}
              </th>
            ))}
          </tr>
        </thead>
      )}
      <tbody>
        {rows.length === 0 && (
          <tr>
            <td class="note">empty</td>
          </tr>
        )}
        {rows.map(({ key, cells, change, before }) => (
          <tr key={key} class={change}>
            <td class="sign">{SIGNS[change]}</td>
            {cells.map((cell, i) => (
              <td key={i}>
                {before !== undefined && before[i] !== cell && <s>{before[i]}</s>} {cell}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function WordHistory({ trace, word, cursor, onMove, onWord }: DetailsProps & { readonly word: number }) {
  const touching = trace.steps.flatMap((step, at) => (touch(step, word) === undefined ? [] : [at]));
  return (
    <div class="history">
      <h3>
        All accesses of {wordText(trace.words[word] ?? { object: '', field: '' })}{' '}
        <button type="button" onClick={() => onWord(word)}>
          close
        </button>
      </h3>
      <ol>
        {touching.map((at) => {
          const step = trace.steps[at];
          const access = step?.accesses.find((one) => one.word === word);
          if (step === undefined || access === undefined) return null;
          const { kind, before, after } = access;
          return (
            <li key={at}>
              <button type="button" class="word" aria-pressed={at === cursor} onClick={() => onMove(at)}>
                {step.index} {trace.tasks.find(({ number }) => number === step.task)?.name}: {kind}
                {before === after ? ` ${before ?? ''}` : ` ${before ?? '∅'} → ${after ?? '∅'}`}
              </button>
            </li>
          );
        })}
      </ol>
    </div>
  );
}
