/**
 * Where each DMA ended: the ways that transactions took as small pictures, the wrong ones first, and all of them as a table.
 */
import { useState } from 'preact/hooks';
import { durationText } from '../../scenario/units.js';
import type { PageScenario, PageTransaction, PageWay } from './data.js';

/** Ways and rows shown before somebody asks for more. */
const SHOWN_WAYS = 12;
const SHOWN_ROWS = 50;

function Way({ way, id, index, isChosen }: { way: PageWay; id: string; index: number; isChosen: boolean }) {
  const isStray = way.explanation !== undefined;
  const times = way.count === 1 ? 'once' : `${way.count} times`;
  const what = way.direction === 'msi' ? 'interrupt message' : way.direction;
  return (
    <li
      class={`way ${isStray ? 'stray' : ''} ${isChosen ? 'selected' : ''}`}
      data-at={`${id}/way/${index}`}
      tabIndex={isChosen ? 0 : -1}
    >
      <div class="hops">
        <span class="hop">
          <b>{way.device}</b>
          <small>
            {what} {way.iova}
          </small>
        </span>
        <span class="arrow" aria-label="goes to">
          →
        </span>
        <span class="hop">
          <b>{way.hop}</b>
          <small>host {way.host}</small>
        </span>
        <span class="arrow" aria-label={isStray ? 'which sends it astray to' : 'which sends it to'}>
          {isStray ? '✖→' : '→'}
        </span>
        <span class="hop end">
          <b>{way.where}</b>
          <small>
            {way.kind}
            {way.address === undefined ? '' : ` ${way.address}`}
          </small>
        </span>
        {isStray && (
          <span class="hop missed">
            <b>{way.kind === way.goal ? `its own ${way.goal}` : way.goal}</b>
            <small>not reached</small>
          </span>
        )}
        <span class="note">{times}</span>
      </div>
      {isStray && (
        <p class="why">
          {way.explanation}
          {way.step !== undefined && (
            <>
              {' · '}
              <a href={`#${id}/step/${way.step}`}>the step</a>
            </>
          )}
          {way.range !== undefined && (
            <>
              {' · '}
              <a href={`#${id}/range/${way.range}`}>in the drawing</a>
            </>
          )}
        </p>
      )}
    </li>
  );
}

interface RowsProps {
  readonly scenario: PageScenario;
  readonly host: string;
  readonly records: readonly PageTransaction[];
  readonly leftOut: number;
}

function Transactions({ scenario, host, records, leftOut }: RowsProps) {
  const [isAll, setAll] = useState(false);
  const [isStrayOnly, setStrayOnly] = useState(false);
  const isStray = (record: PageTransaction): boolean =>
    record.ways.some((way) => scenario.ways[way]?.explanation !== undefined);
  const strays = records.filter(isStray).length;
  const wanted = isStrayOnly ? records.filter(isStray) : records;
  const shown = isAll ? wanted : wanted.slice(0, SHOWN_ROWS);
  return (
    <details>
      <summary>
        {records.length} transactions on host {host}
        {strays > 0 ? `, ${strays} ended elsewhere` : ''}
        {leftOut > 0 ? `; ${leftOut} more are left out of this page` : ''}
      </summary>
      {strays > 0 && strays < records.length && (
        <p class="tools">
          <button type="button" aria-pressed={isStrayOnly} onClick={() => setStrayOnly(!isStrayOnly)}>
            only those that ended elsewhere
          </button>
        </p>
      )}
      <div class="wide">
        <table>
          <caption class="unseen">Transactions on host {host}</caption>
          <thead>
            <tr>
              <th>At</th>
              <th>Device</th>
              <th>Direction</th>
              <th>IOVA</th>
              <th>Bytes</th>
              <th>Ended in</th>
            </tr>
          </thead>
          <tbody>
            {shown.map((record, index) => (
              <tr key={index} class={isStray(record) ? 'stray' : ''}>
                <td>{durationText(record.timeNs)}</td>
                <td>{record.device}</td>
                <td>{record.direction}</td>
                <td>
                  <code>{record.iova}</code>
                </td>
                <td>{record.bytes}</td>
                <td>
                  {isStray(record) ? '✖ ' : ''}
                  {record.ends.join('; ')}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {shown.length < wanted.length && (
        <button type="button" onClick={() => setAll(true)}>
          show all {wanted.length}
        </button>
      )}
    </details>
  );
}

/** Ways and transactions of a scenario. */
export function Dma({ scenario, selected }: { readonly scenario: PageScenario; readonly selected: string }) {
  const [isAll, setAll] = useState(false);
  const { ways, transactions, id } = scenario;
  if (ways.length === 0) return null;
  const strays = ways.filter((way) => way.explanation !== undefined).length;
  const chosen = /^way\/(\d+)$/.exec(selected)?.[1];
  const isEvery = isAll || Number(chosen ?? 0) >= SHOWN_WAYS;
  const shown = isEvery ? ways : ways.slice(0, SHOWN_WAYS);
  return (
    <section class="part">
      <h3>Where DMA ended</h3>
      <p class="note">
        {strays === 0
          ? 'every transaction ended where it should: data in memory, interrupt messages in a doorbell'
          : 'the ways that did not end where they should come first: data in memory of its own, interrupt messages in a doorbell'}
      </p>
      <ul class="ways">
        {shown.map((way, index) => (
          <Way
            key={index}
            way={way}
            id={id}
            index={index}
            isChosen={chosen !== undefined && Number(chosen) === index}
          />
        ))}
      </ul>
      {shown.length < ways.length && (
        <button type="button" onClick={() => setAll(true)}>
          show all {ways.length} ways
        </button>
      )}
      {transactions.map(({ host, records, leftOut }) => (
        <Transactions key={host} scenario={scenario} host={host} records={records} leftOut={leftOut} />
      ))}
    </section>
  );
}
