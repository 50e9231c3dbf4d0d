/** What there is to say of the step under the cursor: who is where, what was touched, how the machine looks now. */
import { useMemo } from 'preact/hooks';
import type { Race } from '../../explore/race.js';
import { endText, viewAt, wordText, type Trace, type TraceAccess, type TraceStep } from '../../explore/trace.js';
import { many } from '../../scenario/units.js';
import { lockColour } from './lanes.js';
import { callsText, lockTags, statesAt, touch, type Lane } from './model.js';
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
  const parts = useMemo(() => {
    // After the last step there is only what a failure outside of all steps left.
    const [before, now] = step === undefined ? [lastIndex(trace), Infinity] : [step.index - 1, step.index];
    return drawnParts(viewAt(trace, before), viewAt(trace, now));
  }, [trace, step]);
  if (step === undefined) return <EndDetails {...props} parts={parts} />;
  const calls = callsText(trace, step);
  return (
    <section class="details" aria-label="step">
      <h2>
        step {step.index} · {lanes.find(({ task }) => task === step.task)?.name} · {step.timeNs} ns
      </h2>
      <p>
        <code>{step.from}</code> → <code>{step.to}</code>
        {calls !== '' && ` · ${calls}`}
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
      <Foot {...props} {...{ parts, text }} />
    </section>
  );
}

/** Number of the last step that is there, -1 where there is none. */
function lastIndex({ steps }: Trace): number {
  return steps.at(-1)?.index ?? -1;
}

/** What is below the details of every step. */
function Foot({ parts, ...props }: DetailsProps & { readonly parts: readonly DrawnPart[] }) {
  return (
    <>
      {parts.map((part) => (
        <Part key={part.name} part={part} />
      ))}
      {props.word !== undefined && <WordHistory {...props} word={props.word} />}
      <details>
        <summary>The report as text</summary>
        <pre>{props.text}</pre>
      </details>
    </>
  );
}

const END_SENTENCES = {
  setup: 'No task has made a step: it failed while everything was set up for them.',
  standstill: 'It failed after the last step: nothing could go on, and somebody still waited.',
  audit: 'It failed after the last step, when the machine was looked through.',
  teardown: 'It failed after the last step, while everything was given back.',
} as const;

/** For a failure outside of all steps. */
function EndDetails(props: DetailsProps & { readonly parts: readonly DrawnPart[] }) {
  const { end, failure, steps } = props.trace;
  if (end === undefined) return null;
  return (
    <section class="details" aria-label="step">
      <h2>
        ({endText(end)}) · {end.timeNs} ns
      </h2>
      <p>{END_SENTENCES[end.place]}</p>
      <p class="failure">{failure?.message}</p>
      <Pairs {...props} />
      {steps.length > 0 && <States {...props} />}
      {props.parts.length > 0 && <h3>The machine where it failed</h3>}
      <Foot {...props} />
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
          {[first, second].map(({ at, access }, side) => (
            <button key={at} type="button" onClick={() => onMove(at)}>
              {side === 0 ? 'earlier' : 'later'}: {access.kind} at {trace.steps[at]?.index}
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
                    <Swatch lock={lock} shared={shared} />
                    {lockTags(trace)[lock]} {trace.locks[lock]?.label}
                    {shared && ' (read)'}
                  </span>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {trace.locks.length > 0 && (
        <p class="note">
          Bars beside the lanes:{' '}
          {lockTags(trace).map((tag, lock) => (
            <span key={lock} class="key">
              <Swatch lock={lock} shared={false} />
              {tag} {trace.locks[lock]?.label};{' '}
            </span>
          ))}
          hollow: for reading
        </p>
      )}
    </>
  );
}

function Swatch({ lock, shared }: { readonly lock: number; readonly shared: boolean }) {
  const colour = lockColour(lock);
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
                {pages > 1 && <span class="note"> and {many(pages - 1, 'more page')}</span>}
              </td>
              <td>{before === after ? before : `${before ?? '∅'} → ${after ?? '∅'}`}</td>
              <td class="note">
                {held
                  .map((lock) => `${trace.locks[lock < 0 ? -1 - lock : lock]?.label ?? ''}${lock < 0 ? '(read)' : ''}`)
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
        {isChanged && <span class="deviation"> changed here</span>}
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
      {touching.length === 0 && <p class="note">none in these steps: no step changes it</p>}
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
