/**
 * What a violation says to a human: the operation nobody can explain, what overlapped it, what it might have seen, and one
 * sentence with the reason where the operations on the page give one.
 */
import {
  FAULT,
  UNANSWERED,
  frameText,
  hex,
  isRefused,
  operationName,
  operationPages,
  operationText,
  type Operation,
} from './operation.js';

/** One answer that no order of the operations explains. */
export interface Violation {
  /** `translation`: what an access saw; `page`: a call's effect on one page; `range`: calls' answers against each other. */
  readonly rule: 'translation' | 'page' | 'range';
  /** The page; the first page of the call where the whole range is meant. */
  readonly page: number;
  readonly operation: Operation;
  /** What overlapped the operation in time and in pages, in the order of invocation. */
  readonly overlapping: readonly Operation[];
  /** Frames (or -1: a fault) that the access might have seen. Empty for calls. */
  readonly allowed: readonly number[];
  readonly sentence: string;
}

function isOpenDuring(operation: Operation, other: Operation): boolean {
  return other.invokedAt < operation.respondedAt && operation.invokedAt < other.respondedAt;
}

/** Operations in `log` that overlap `operation` in time and touch first..last. */
function overlappingIn(
  log: Iterable<Operation>,
  operation: Operation,
  first: number,
  last: number,
): readonly Operation[] {
  const found: Operation[] = [];
  for (const other of log) {
    if (other === operation || other.number === operation.number || !isOpenDuring(operation, other)) continue;
    const isView = other.kind === 'attach' || other.kind === 'detach';
    if (isView ? other.agent === operation.agent : other.overlaps(first, last)) found.push(other);
  }
  return found.sort((a, b) => a.invokedAt - b.invokedAt);
}

/** The latest of the operations that are wanted, by response. */
function latest(operations: readonly Operation[], isWanted: (operation: Operation) => boolean): Operation | undefined {
  let found: Operation | undefined;
  for (const operation of operations) {
    if (isWanted(operation) && (found === undefined || operation.invokedAt > found.invokedAt)) found = operation;
  }
  return found;
}

function whyFrame(access: Operation, history: readonly Operation[]): string {
  const page = access.first;
  const shows = (map: Operation): boolean =>
    map.kind === 'map' && !isRefused(map) && map.frameAt(page) === access.frame;
  const map = latest(history, (other) => shows(other) && other.invokedAt < access.respondedAt);
  if (map === undefined) {
    const later = latest(history, shows);
    if (later === undefined) return 'no MAP ever showed that frame there';
    return `${operationName(later)} of it was invoked only after the access had ended`;
  }
  if (access.isWrite && !map.isWritable) return `${operationName(map)} of it lets devices read only`;
  if (map.respondedAt < access.invokedAt && map.rc !== 0) {
    return `${operationName(map)} of it had failed and returned before the access was issued`;
  }
  const ended = (other: Operation): boolean => other.rc !== UNANSWERED && other.respondedAt < access.invokedAt;
  const unmap = latest(
    history,
    (other) => other.kind === 'unmap' && other.tells(page) && ended(other) && other.respondedAt > map.invokedAt,
  );
  if (unmap !== undefined) return `${operationName(unmap)} of it returned before the access was issued`;
  const detach = latest(history, (other) => other.kind === 'detach' && other.agent === access.agent && ended(other));
  const attach = latest(history, (other) => other.kind === 'attach' && other.agent === access.agent);
  if (detach !== undefined && (attach === undefined || attach.invokedAt < detach.invokedAt)) {
    return `${operationName(detach)} had returned before the access was issued`;
  }
  return 'no order of the operations that overlap allows it';
}

function whyFault(access: Operation, history: readonly Operation[]): string {
  const page = access.first;
  const map = latest(
    history,
    (other) => other.kind === 'map' && other.rc === 0 && other.tells(page) && other.respondedAt < access.invokedAt,
  );
  if (map === undefined) return 'no order of the operations that overlap allows it';
  const name = operationName(map);
  return `${name} of it to ${frameText(map.frameAt(page))} had returned and no UNMAP of it was invoked before the access ended`;
}

/** An access that saw what it may not see. `log`: the operations known; `allowed`: what it might have seen. */
export function translationViolation(
  access: Operation,
  allowed: readonly number[],
  log: Iterable<Operation>,
): Violation {
  const page = access.first;
  const history = [...log].filter((other) => other.overlaps(page, page) || other.agent === access.agent);
  const saw =
    access.frame === FAULT ? `faulted at page ${hex(page)}` : `reached frame ${hex(access.frame)} at page ${hex(page)}`;
  const why = access.frame === FAULT ? whyFault(access, history) : whyFrame(access, history);
  const might = allowed.length === 0 ? '' : `; it might have seen ${allowed.map(frameText).join(' or ')}`;
  return {
    rule: 'translation',
    page,
    operation: access,
    overlapping: overlappingIn(history, access, page, page),
    allowed,
    sentence: `device ${access.agent}'s access at op ${access.number} ${saw}, but ${why}${might}`,
  };
}

/** A call whose effect on a page does not fit what was seen there. */
export function pageViolation(operation: Operation, page: number, log: Iterable<Operation>): Violation {
  const effect = operation.kind === 'map' ? 'found the page free' : 'found the page mapped';
  return {
    rule: 'page',
    page,
    operation,
    overlapping: overlappingIn(log, operation, page, page),
    allowed: [],
    sentence: `${operationText(operation)}: in no order of what happened to page ${hex(page)} can it have ${effect}`,
  };
}

/** A call whose answer does not fit the areas it met. */
export function rangeViolation(operation: Operation, areas: readonly Operation[], log: Iterable<Operation>): Violation {
  const there = areas.map((area) => `${operationPages(area)} of ${operationName(area)}`).join(', ');
  const met = there === '' ? 'nothing was mapped there' : `what was there is ${there}`;
  return {
    rule: 'range',
    page: operation.first,
    operation,
    overlapping: overlappingIn(log, operation, operation.first, operation.last),
    allowed: [],
    sentence: `${operationText(operation)}: no order of the calls that overlap explains that answer; ${met}`,
  };
}

function wentText(unmap: Operation): string {
  const ranges = unmap.extents.map(({ first, last }) => `${hex(first)}-${hex(last)}`);
  return ranges.length === 0 ? 'nothing' : `${unmap.toldPages} pages: ${ranges.join(', ')}`;
}

/** An UNMAP that counts other pages than went, or took pages beyond its range. */
export function countViolation(unmap: Operation, log: Iterable<Operation>): Violation {
  return {
    rule: 'range',
    page: unmap.first,
    operation: unmap,
    overlapping: overlappingIn(log, unmap, unmap.first, unmap.last),
    allowed: [],
    sentence: `${operationText(unmap)}, but what went is ${wentText(unmap)}`,
  };
}
