/**
 * The page: totals, filters, the list of scenarios with failures first.
 *
 * What is looked at is in the address (`#name`, `#name/step/3`), so every link can be passed on, Back works, and going
 * somewhere is the same whether a link, a mark in a drawing or somebody else's message led there.
 */
import { useEffect, useMemo, useRef, useState } from 'preact/hooks';
import type { PageRun, Verdict } from './data.js';
import { EVERYTHING, isWanted, parseTarget, searchText, type Filter, type Target } from './find.js';
import { Patterns, SIGNS, VERDICT_WORDS } from './look.js';
import { Scenario } from './scenario.js';

const VERDICTS: readonly Verdict[] = ['fail', 'inconclusive', 'pass'];

/** Brings a thing into view, opens what it is folded into and gives it the focus. */
function goTo({ id, key }: Target): void {
  const element = document.querySelector<HTMLElement | SVGElement>(`[data-at~="${CSS.escape(`${id}/${key}`)}"]`);
  if (element === null) return;
  for (let around = element.closest('details'); around !== null;) {
    around.open = true;
    around = around.parentElement?.closest('details') ?? null;
  }
  element.focus({ preventScroll: true });
  const { top, bottom } = element.getBoundingClientRect();
  const isInView = top >= 0 && bottom <= innerHeight;
  if (key === '') element.scrollIntoView({ block: 'start' });
  else if (!isInView) element.scrollIntoView({ block: 'center' });
}

interface FiltersProps {
  readonly run: PageRun;
  readonly filter: Filter;
  readonly onChange: (filter: Filter) => void;
  readonly shown: number;
}

function Filters({ run, filter, onChange, shown }: FiltersProps) {
  const search = useRef<HTMLInputElement>(null);
  const families = [...new Set(run.scenarios.map(({ family }) => family))].sort();
  const count = (verdict: Verdict): number => run.scenarios.filter((one) => one.verdict === verdict).length;
  useEffect(() => {
    const jump = (event: KeyboardEvent): void => {
      const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
      if (event.key !== '/' || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      search.current?.focus();
    };
    addEventListener('keydown', jump);
    return () => removeEventListener('keydown', jump);
  }, []);
  return (
    <form class="filters" role="search" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
      <label class="words">
        Search <kbd>/</kbd>
        <input
          ref={search}
          type="search"
          value={filter.words}
          placeholder="title, RR-15, text of a check"
          onInput={(event) => onChange({ ...filter, words: event.currentTarget.value })}
        />
      </label>
      <label>
        Family
        <select value={filter.family} onChange={(event) => onChange({ ...filter, family: event.currentTarget.value })}>
          <option value="">all</option>
          {families.map((family) => (
            <option key={family} value={family}>
              {family}
            </option>
          ))}
        </select>
      </label>
      <div role="group" aria-label="Verdict" class="verdicts">
        {VERDICTS.map((verdict) => (
          <button
            key={verdict}
            type="button"
            class={verdict}
            aria-pressed={filter.verdict === verdict}
            onClick={() => onChange({ ...filter, verdict: filter.verdict === verdict ? '' : verdict })}
          >
            {SIGNS[verdict]} {count(verdict)} {VERDICT_WORDS[verdict]}
          </button>
        ))}
      </div>
      {filter.covers !== '' && (
        <button type="button" class="chip" aria-pressed="true" onClick={() => onChange({ ...filter, covers: '' })}>
          {filter.covers} <span aria-hidden="true">×</span>
          <span class="unseen">remove this filter</span>
        </button>
      )}
      <output class="note">
        {shown} of {run.scenarios.length} shown
      </output>
    </form>
  );
}

/** What is open at first: what the address says, or the first that did not pass, or the only one. */
function firstOpen(run: PageRun): Set<string> {
  const target = parseTarget(location.hash);
  if (target !== undefined) return new Set([target.id]);
  const [first] = run.scenarios;
  return new Set(first !== undefined && (first.verdict !== 'pass' || run.scenarios.length === 1) ? [first.id] : []);
}

/** The whole page. */
export function App({ run }: { readonly run: PageRun }) {
  const [filter, setFilter] = useState<Filter>(EVERYTHING);
  const [open, setOpen] = useState(() => firstOpen(run));
  const [target, setTarget] = useState<Target | undefined>(() => parseTarget(location.hash));
  const texts = useMemo(() => new Map(run.scenarios.map((one) => [one.id, searchText(one)])), [run]);
  const shown = run.scenarios.filter((one) => isWanted(one, filter, texts.get(one.id)));

  useEffect(() => {
    const follow = (): void => {
      const next = parseTarget(location.hash);
      setTarget(next);
      if (next === undefined) return;
      setOpen((before) => new Set([...before, next.id]));
      // A link into something that the filters hide takes the filters away.
      setFilter((before) => {
        const one = run.scenarios.find(({ id }) => id === next.id);
        return one === undefined || isWanted(one, before) ? before : EVERYTHING;
      });
    };
    addEventListener('hashchange', follow);
    // A second click on a link changes no address, and still means: show me.
    const again = (event: MouseEvent): void => {
      const link = event.target instanceof Element ? event.target.closest('a') : null;
      const href = link?.getAttribute('href') ?? '';
      if (href === location.hash) follow();
    };
    addEventListener('click', again);
    return () => {
      removeEventListener('hashchange', follow);
      removeEventListener('click', again);
    };
  }, [run]);

  useEffect(() => {
    if (target === undefined) return;
    // Drawings know their width one frame after they are in the page.
    const frame = requestAnimationFrame(() => requestAnimationFrame(() => goTo(target)));
    return () => cancelAnimationFrame(frame);
  }, [target]);

  const toggle = (id: string): void => {
    const isOpening = !open.has(id);
    setOpen((before) => new Set(isOpening ? [...before, id] : [...before].filter((other) => other !== id)));
    if (isOpening) history.replaceState(null, '', `#${id}`);
  };
  const isAllOpen = shown.every(({ id }) => open.has(id));

  return (
    <>
      <Patterns />
      <header>
        <h1>iovaduct report</h1>
        <p class="totals">
          {run.totals}
          <span class="note">
            {' '}
            · hosts {run.placement === 'inline' ? 'inline' : 'in workers'} · full digest <code>{run.digest}</code>
          </span>
        </p>
        <Filters run={run} filter={filter} onChange={setFilter} shown={shown.length} />
      </header>
      <main>
        {shown.length > 0 && (
          <p class="tools">
            <button
              type="button"
              onClick={() => setOpen(isAllOpen ? new Set<string>() : new Set([...open, ...shown.map(({ id }) => id)]))}
            >
              {isAllOpen ? 'close all' : `open all ${shown.length}`}
            </button>
          </p>
        )}
        {shown.map((scenario) => (
          <Scenario
            key={scenario.id}
            scenario={scenario}
            isOpen={open.has(scenario.id)}
            onToggle={() => toggle(scenario.id)}
            covers={filter.covers}
            onCovers={(covers) => setFilter({ ...filter, covers })}
            selected={target?.id === scenario.id ? target.key : ''}
          />
        ))}
        {shown.length === 0 && (
          <p>
            Nothing fits these filters.{' '}
            <button type="button" onClick={() => setFilter(EVERYTHING)}>
              show everything
            </button>
          </p>
        )}
      </main>
    </>
  );
}
