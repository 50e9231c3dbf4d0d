/**
 * The page of a schedule: lanes on the left, the step under the cursor on the right.
 *
 * The cursor goes by click, slider and keys, both ways; a look at the machine is put together anew at each step, so going back is
 * no harder than going on.
 */
import { useEffect, useMemo, useState } from 'preact/hooks';
import { endText, wordText } from '../../explore/trace.js';
import { many } from '../../scenario/units.js';
import type { SchedulePageData } from './data.js';
import { Details } from './details.js';
import { Lanes, wantedWidth } from './lanes.js';
import { arrowsOf, holdBars, isDeviation, lanesOf, lastAt, rowAt, rowsOf } from './model.js';

/** Steps that Page Up and Page Down go. */
const PAGE_STEPS = 20;

function nearest(rows: readonly number[], at: number): number {
  return rows[Math.min(rowAt(rows, at), rows.length - 1)] ?? 0;
}

/** The next step, or the one before, that fits. */
function search(rows: readonly number[], from: number, by: 1 | -1, fits: (at: number) => boolean): number | undefined {
  return by === 1 ? rows.find((at) => at > from && fits(at)) : rows.findLast((at) => at < from && fits(at));
}

export function App({ data }: { readonly data: SchedulePageData }) {
  const { trace, race, rule, text } = data;
  const lanes = useMemo(() => lanesOf(trace), [trace]);
  const bars = useMemo(() => holdBars(trace), [trace]);
  const arrows = useMemo(() => arrowsOf(trace), [trace]);
  const [cursor, setCursor] = useState(lastAt(trace));
  const [hidden, setHidden] = useState<ReadonlySet<number>>(new Set());
  const [word, setWord] = useState<number>();
  const [lock, setLock] = useState<number>();
  const [isOnly, setIsOnly] = useState(false);
  const [hasArrows, setHasArrows] = useState(true);
  const rows = useMemo(() => rowsOf(trace, { hidden, word, lock, isOnly }), [trace, hidden, word, lock, isOnly]);
  const shown = rows.includes(cursor) ? cursor : nearest(rows, cursor);
  const row = rowAt(rows, shown);
  const hardware = lanes.filter(({ isProgram }) => !isProgram).map(({ task }) => task);
  const isHardwareHidden = hardware.length > 0 && hardware.every((task) => hidden.has(task));

  const goBy = (by: number): void => setCursor(rows[Math.max(0, Math.min(rows.length - 1, row + by))] ?? 0);
  const goToDeviation = (by: 1 | -1): void => {
    const found = search(rows, shown, by, (at) => isDeviation(trace.steps[at] ?? NO_STEP));
    if (found !== undefined) setCursor(found);
  };
  const toggle = (tasks: readonly number[], isHidden: boolean): void => {
    const next = new Set(hidden);
    for (const task of tasks)
      if (isHidden) next.add(task);
      else next.delete(task);
    setHidden(next);
  };

  useEffect(() => {
    const keys: Readonly<Record<string, () => void>> = {
      ArrowDown: () => goBy(1),
      ArrowRight: () => goBy(1),
      ArrowUp: () => goBy(-1),
      ArrowLeft: () => goBy(-1),
      PageDown: () => goBy(PAGE_STEPS),
      PageUp: () => goBy(-PAGE_STEPS),
      Home: () => setCursor(rows[0] ?? 0),
      End: () => setCursor(rows.at(-1) ?? 0),
      d: () => goToDeviation(1),
      D: () => goToDeviation(-1),
    };
    const onKey = (event: KeyboardEvent): void => {
      const isInSelect = event.target instanceof HTMLSelectElement;
      const action = keys[event.key];
      if (action === undefined || isInSelect || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      action();
    };
    window.addEventListener('keydown', onKey);
    return () => window.removeEventListener('keydown', onKey);
  });

  const step = trace.steps[shown];
  const deviations = trace.steps.filter(isDeviation).length;
  return (
    <main>
      <header>
        <h1>{trace.title}</h1>
        <p class="failure">
          {trace.failure === undefined ? (
            'The run did not fail.'
          ) : (
            <>
              <b>✖ {trace.end === undefined ? trace.failure.task : endText(trace.end)}</b> {trace.failure.message}
            </>
          )}
        </p>
        {rule !== '' && <p class="note">The rule: {rule}.</p>}
        {trace.omittedSteps > 0 && (
          <p class="note">
            {many(trace.omittedSteps, 'step')} before the first one here {trace.omittedSteps === 1 ? 'is' : 'are'} left
            out; the machine is drawn as it was after them.
          </p>
        )}
      </header>
      <div class="tools">
        <span class="moves">
          <button type="button" onClick={() => goBy(-1)} aria-label="one step back">
            ◀
          </button>
          <input
            type="range"
            min={0}
            max={Math.max(0, rows.length - 1)}
            value={row}
            aria-label="step"
            aria-valuetext={step === undefined ? 'the end' : `step ${step.index}`}
            onInput={({ currentTarget }) => setCursor(rows[Number(currentTarget.value)] ?? 0)}
          />
          <button type="button" onClick={() => goBy(1)} aria-label="one step on">
            ▶
          </button>
          <button type="button" onClick={() => setCursor(lastAt(trace))}>
            ✖ end
          </button>
          <button type="button" onClick={() => goToDeviation(-1)} aria-label="the deviation before">
            ◆ ▲
          </button>
          <button type="button" onClick={() => goToDeviation(1)} aria-label="the next deviation">
            ◆ ▼
          </button>
        </span>
        <span class="note">
          {rows.filter((at) => at < trace.steps.length).length} of {many(trace.steps.length, 'step')}, {deviations}{' '}
          <span class="deviation">◆</span> with a choice that is not the default
          {trace.schedule.length > 0 && `, by ${many(trace.schedule.length, 'switch')}`}; keys: arrows, Page, Home, End,
          d
        </span>
        <span class="filters">
          {lanes
            .filter(({ isProgram }) => isProgram)
            .map(({ task, name }) => (
              <label key={task}>
                <input type="checkbox" checked={!hidden.has(task)} onChange={() => toggle([task], !hidden.has(task))} />
                {name}
              </label>
            ))}
          {hardware.length > 0 && (
            <label>
              <input type="checkbox" checked={!isHardwareHidden} onChange={() => toggle(hardware, !isHardwareHidden)} />
              hardware and daemons
            </label>
          )}
          <label>
            <input type="checkbox" checked={hasArrows} onChange={() => setHasArrows(!hasArrows)} />
            arrows
          </label>
          <label>
            word
            <select
              value={word ?? ''}
              onChange={({ currentTarget }) => {
                const { value } = currentTarget;
                setWord(value === '' ? undefined : Number(value));
              }}
            >
              <option value="">any</option>
              {sortedWords(trace.words.map(wordText)).map(([index, name]) => (
                <option key={index} value={index}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          <label>
            lock
            <select
              value={lock ?? ''}
              onChange={({ currentTarget }) => {
                const { value } = currentTarget;
                setLock(value === '' ? undefined : Number(value));
              }}
            >
              <option value="">any</option>
              {trace.locks.map(({ label }, index) => (
                <option key={index} value={index}>
                  {label}
                </option>
              ))}
            </select>
          </label>
          <label>
            <input
              type="checkbox"
              checked={isOnly}
              disabled={word === undefined && lock === undefined}
              onChange={() => setIsOnly(!isOnly)}
            />
            only steps that touch it
          </label>
        </span>
      </div>
      <div class="panes" style={{ '--wanted': `${wantedWidth(trace, lanes, bars)}px` }}>
        <Lanes
          {...{ trace, race, lanes, bars, rows, word, lock, hidden }}
          arrows={hasArrows ? arrows : []}
          cursor={shown}
          onMove={setCursor}
        />
        <Details
          {...{ trace, race, lanes, word, text }}
          cursor={shown}
          onWord={(index) => setWord(index === word ? undefined : index)}
          onMove={setCursor}
        />
      </div>
    </main>
  );
}

const NO_STEP = { choices: [] } as unknown as SchedulePageData['trace']['steps'][number];

function sortedWords(names: readonly string[]): [number, string][] {
  return names.map((name, index): [number, string] => [index, name]).sort(([, a], [, b]) => (a < b ? -1 : 1));
}
