/** What stress can complain of: the word in an `ALARM` line, in the JSON document, and in docs/stress.md, which says what each means. */
export const ALARMS = [
  'stale-translation',
  'wrong-translation',
  'lost-translation',
  'unpinned',
  'freed-table',
  'forbidden-access',
  'lost-permission',
  'answer',
  'fault',
  'dirty-lost',
  'mapped-twice',
  'hole',
  'split',
  'unmapped-other',
  'audit',
  'memory',
  'kernel-bug',
  'device-died',
  'stuck',
] as const;

export type Alarm = (typeof ALARMS)[number];

/** Something the records contradict; `page` is an IOVA page, -1 where none is meant. */
export type Complain = (kind: Alarm, page: number, detail: string) => void;
