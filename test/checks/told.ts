/** Histories as the tests tell them: to the online checker, or recorded and checked offline. */
import { AddressSpaceCheck } from '../../src/checks/address-space-check.js';
import { checkHistory, type HistoryResult } from '../../src/checks/check-history.js';
import { createHistoryBuffer, createStampCounter, HistoryWriter } from '../../src/checks/history.js';
import type { CheckOptions } from '../../src/checks/linearization.js';
import { UNANSWERED, type Extent, type Operation, type OperationKind } from '../../src/checks/operation.js';

/** An operation with its place in the order of events: any distinct numbers; `end` Infinity when it never returned. */
export interface Told {
  readonly kind: OperationKind;
  readonly agent: number;
  readonly first: number;
  readonly last: number;
  readonly begin: number;
  readonly end: number;
  readonly rc: number;
  readonly extents: readonly Extent[];
  readonly answeredPages: number;
  readonly frame: number;
}

interface Event {
  readonly at: number;
  readonly told: Told;
  readonly isResponse: boolean;
}

/** Invocations and responses in order. */
export function eventsOf(history: readonly Told[]): Event[] {
  const events: Event[] = [];
  for (const told of history) {
    events.push({ at: told.begin, told, isResponse: false });
    if (told.end !== Infinity) events.push({ at: told.end, told, isResponse: true });
  }
  return events.sort((a, b) => a.at - b.at);
}

function begin(check: AddressSpaceCheck, told: Told): Operation {
  const pages = told.last - told.first + 1;
  switch (told.kind) {
    case 'map':
      return check.beginMap(told.agent, told.first, pages);
    case 'unmap':
      return check.beginUnmap(told.agent, told.first, pages);
    case 'translate':
      return check.beginTranslate(told.agent, told.first);
    case 'attach':
      return check.beginAttach(told.agent);
    case 'detach':
      return check.beginDetach(told.agent);
  }
}

/** Tells a history to the online checker. */
export function checkOnline(history: readonly Told[], options: CheckOptions = {}): AddressSpaceCheck {
  const check = new AddressSpaceCheck(options);
  const open = new Map<Told, Operation>();
  for (const { told, isResponse } of eventsOf(history)) {
    const operation = open.get(told);
    if (!isResponse || operation === undefined) {
      const begun = begin(check, told);
      open.set(told, begun);
      for (const { first, last, frame } of told.extents) {
        if (told.kind === 'map') check.shows(begun, first, last - first + 1, frame);
        else check.takes(begun, first, last - first + 1);
      }
    } else if (told.kind === 'unmap') check.endUnmap(operation, told.rc, told.answeredPages);
    else if (told.kind === 'translate') check.endTranslate(operation, told.frame);
    else check.end(operation, told.rc);
  }
  check.finish();
  return check;
}

/** Records a history, one buffer for every operation that is open at a time, and checks it. */
export function checkRecorded(history: readonly Told[], options: CheckOptions = {}): HistoryResult {
  const stamps = createStampCounter();
  const buffers: SharedArrayBuffer[] = [];
  const idle: HistoryWriter[] = [];
  const open = new Map<Told, HistoryWriter>();
  const records = history.reduce((sum, { extents }) => sum + 1 + extents.length, 0);
  for (const { told, isResponse } of eventsOf(history)) {
    const busy = open.get(told);
    if (isResponse && busy !== undefined) {
      busy.end(told.rc, told.kind === 'unmap' ? told.answeredPages : told.frame);
      idle.push(busy);
      continue;
    }
    let writer = idle.pop();
    if (writer === undefined) {
      const buffer = createHistoryBuffer(records);
      buffers.push(buffer);
      writer = new HistoryWriter(buffer, stamps);
    }
    open.set(told, writer);
    const pages = told.last - told.first + 1;
    if (told.kind === 'map') writer.beginMap(told.agent, told.first, pages);
    else if (told.kind === 'unmap') writer.beginUnmap(told.agent, told.first, pages);
    else if (told.kind === 'translate') writer.beginTranslate(told.agent, told.first);
    else if (told.kind === 'attach') writer.beginAttach(told.agent);
    else writer.beginDetach(told.agent);
    for (const { first, last, frame } of told.extents) writer.extent(first, last - first + 1, frame);
  }
  return checkHistory(buffers, options);
}

const BASE = { agent: 0, first: 0, last: 0, rc: 0, extents: [], answeredPages: 0, frame: -1 };

function endOf(rc: number, end: number): number {
  return rc === UNANSWERED ? Infinity : end;
}

/** MAP of first..last to consecutive frames. */
export function map(begin: number, end: number, first: number, last: number, frame: number, rc = 0): Told {
  return { ...BASE, kind: 'map', begin, end: endOf(rc, end), first, last, rc, extents: [{ first, last, frame }] };
}

/** UNMAP of first..last that took the ranges `gone`. */
export function unmap(
  begin: number,
  end: number,
  first: number,
  last: number,
  gone: readonly (readonly [number, number])[],
  rc = 0,
): Told {
  const extents = gone.map(([from, to]) => ({ first: from, last: to, frame: 0 }));
  const answeredPages = extents.reduce((sum, extent) => sum + extent.last - extent.first + 1, 0);
  return { ...BASE, kind: 'unmap', begin, end: endOf(rc, end), first, last, rc, extents, answeredPages };
}

/** An access of a page by a view, which saw a frame or (-1) a fault. */
export function access(begin: number, end: number, page: number, frame: number, view = 0): Told {
  return { ...BASE, kind: 'translate', begin, end, agent: view, first: page, last: page, frame };
}

/** A view is attached or detached. */
export function viewChange(kind: 'attach' | 'detach', begin: number, end: number, view = 0, rc = 0): Told {
  return { ...BASE, kind, begin, end: endOf(rc, end), agent: view, rc };
}
