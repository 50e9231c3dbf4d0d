/**
 * Which scenarios a reader asked for, and which thing an address (`#name/step/3`) means. Pure.
 */
import type { PageScenario, Verdict } from './data.js';

/** What the list is narrowed to; an empty word narrows nothing. */
export interface Filter {
  readonly words: string;
  readonly family: string;
  readonly verdict: Verdict | '';
  readonly covers: string;
}

export const EVERYTHING: Filter = { words: '', family: '', verdict: '', covers: '' };

/** Everything of a scenario that a search looks at, in lower case. */
export function searchText(scenario: PageScenario): string {
  const { name, title, file, family, headline, covers, checks, steps } = scenario;
  const said = [
    ...checks.flatMap((check) => [check.name, check.detail]),
    ...steps.flatMap((step) => step.explanation ?? []),
  ];
  return [name, title, file, family, headline, ...covers, ...said].join('\n').toLowerCase();
}

/** Whether a scenario passes; all words must occur. */
export function isWanted(scenario: PageScenario, filter: Filter, text = searchText(scenario)): boolean {
  const { words, family, verdict, covers } = filter;
  return (
    (family === '' || scenario.family === family) &&
    (verdict === '' || scenario.verdict === verdict) &&
    (covers === '' || scenario.covers.includes(covers)) &&
    words
      .toLowerCase()
      .split(/\s+/)
      .every((word) => text.includes(word))
  );
}

/** A thing in the page. `key` is `step/3`, `range/0`, `way/1`, `event/17`, `line/23`, or empty for the scenario itself. */
export interface Target {
  readonly id: string;
  readonly key: string;
}

/** Reads the fragment of an address. */
export function parseTarget(hash: string): Target | undefined {
  const [id = '', ...rest] = hash.replace(/^#/, '').split('/');
  return id === '' ? undefined : { id, key: rest.join('/') };
}
