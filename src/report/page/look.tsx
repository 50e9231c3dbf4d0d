/**
 * Colours, patterns and signs: nothing is told by colour alone.
 *
 * Colours are those of Okabe and Ito, as custom properties of style.css, which has darker and lighter ones for either
 * background. Every kind has a pattern, a shape or a word besides.
 */
import type { ComponentChildren } from 'preact';
import type { PageEvent, PageSpan, PageWay, Verdict } from './data.js';

export const SIGNS: Readonly<Record<Verdict, string>> = { pass: '✔', fail: '✖', inconclusive: '?' };
export const VERDICT_WORDS: Readonly<Record<Verdict, string>> = {
  pass: 'passed',
  fail: 'failed',
  inconclusive: 'inconclusive',
};

/** Kinds of ranges: fill, and what they are called; where they would hide each other, the first is drawn above the others. */
export const RANGE_KINDS: Readonly<Record<string, readonly [fill: string, words: string]>> = {
  ram: ['var(--sky)', 'guest RAM'],
  msi: ['url(#p-msi)', 'hardware MSI'],
  'software-msi': ['url(#p-software-msi)', 'software MSI window'],
  reserved: ['url(#p-reserved)', 'reserved'],
  direct: ['url(#p-direct)', 'direct'],
  'direct-relaxable': ['url(#p-direct-relaxable)', 'relaxable direct'],
  aperture: ['url(#p-aperture)', 'beyond the aperture'],
  doorbell: ['url(#p-doorbell)', 'doorbell in the root complex'],
  abort: ['url(#p-abort)', 'aborts'],
  bar: ['url(#p-bar)', 'BAR of a device'],
  window: ['url(#p-window)', 'window of the root complex'],
  outside: ['url(#p-outside)', 'guest RAM outside dma-ranges'],
  'dma-range': ['var(--yellow)', 'dma-ranges: devices reach it'],
  conflict: ['url(#p-conflict)', 'in conflict'],
  stray: ['url(#p-stray)', 'DMA that left its way'],
  lost: ['url(#p-lost)', 'given up'],
};

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

const PATTERNS: readonly (readonly [id: string, colour: string, path: string])[] = [
  ['msi', '--vermillion', 'M0 0L8 8M-2 6L2 10M6 -2L10 2'],
  ['software-msi', '--orange', 'M8 0L0 8M10 6L6 10M2 -2L-2 2'],
  ['reserved', '--ink', 'M0 4H8'],
  ['aperture', '--ink', 'M4 0V8'],
  ['abort', '--ink', 'M0 0L8 8M8 0L0 8'],
  ['doorbell', '--vermillion', 'M2 2h.01M6 6h.01'],
  ['direct', '--purple', 'M4 0V8'],
  ['direct-relaxable', '--green', 'M4 4h.01'],
  ['window', '--blue', 'M0 0L8 8M8 0L0 8'],
  ['bar', '--purple', 'M0 2H4M4 6H8'],
  ['outside', '--vermillion', 'M0 8L4 0L8 8'],
  ['conflict', '--vermillion', 'M0 2H8M0 6H8'],
  ['stray', '--purple', 'M0 8L4 0L8 8'],
  ['lost', '--ink', 'M2 2h.01M6 6h.01'],
  ['copy', '--orange', 'M8 0L0 8M10 6L6 10M2 -2L-2 2'],
  ['over', '--vermillion', 'M0 0L8 8M8 0L0 8'],
  ['still', '--purple', 'M4 0V8'],
];

/** The patterns, once for all drawings. */
export function Patterns() {
  return (
    <svg width="0" height="0" aria-hidden="true" class="patterns">
      <defs>
        {PATTERNS.map(([id, colour, path]) => (
          <pattern key={id} id={`p-${id}`} width="8" height="8" patternUnits="userSpaceOnUse">
            <rect width="8" height="8" fill={`var(${colour})`} fill-opacity=".35" />
            <path d={path} stroke={`var(${colour})`} stroke-width="2" stroke-linecap="round" fill="none" />
          </pattern>
        ))}
      </defs>
    </svg>
  );
}

/** A small piece of a fill with its name. */
export function Swatch({ fill, children }: { readonly fill: string; readonly children: ComponentChildren }) {
  return (
    <span class="swatch">
      <svg width="22" height="12" aria-hidden="true">
        <rect x=".5" y=".5" width="21" height="11" fill={fill} class="edge" />
      </svg>
      {children}
    </span>
  );
}

/** Phases of a migration. */
export const PHASE_FILLS: Readonly<Record<string, string>> = {
  setup: 'url(#p-direct-relaxable)',
  precopy: 'var(--sky)',
  quiesce: 'url(#p-still)',
  'stop-copy': 'url(#p-copy)',
  switchover: 'url(#p-over)',
  resume: 'var(--green)',
  cancel: 'url(#p-reserved)',
  rollback: 'url(#p-reserved)',
};

/** States of the VFIO migration protocol. */
export const DEVICE_STATE_FILLS: Readonly<Record<string, string>> = {
  RUNNING: 'var(--green)',
  RUNNING_P2P: 'url(#p-direct-relaxable)',
  PRE_COPY: 'var(--sky)',
  PRE_COPY_P2P: 'url(#p-window)',
  STOP: 'url(#p-reserved)',
  STOP_COPY: 'url(#p-copy)',
  RESUMING: 'url(#p-still)',
  ERROR: 'url(#p-over)',
};

/** Results of a step. */
export const STEP_FILLS: Readonly<Record<string, string>> = {
  ok: 'var(--calm)',
  refused: 'url(#p-software-msi)',
  killed: 'url(#p-window)',
  silent: 'url(#p-conflict)',
};

/** Families of events. */
export type EventClass = 'trouble' | 'movement' | 'device' | 'link' | 'interrupt' | 'memory';

export const EVENT_CLASSES: Readonly<
  Record<EventClass, { readonly colour: string; readonly shape: string; readonly words: string }>
> = {
  trouble: { colour: 'var(--vermillion)', shape: 'M0 -7L7 6H-7Z', words: 'fault, refusal, DMA that ended elsewhere' },
  movement: { colour: 'var(--blue)', shape: 'M0 -7L6 0L0 7L-6 0Z', words: 'guest and migration' },
  device: { colour: 'var(--green)', shape: 'M-5 -5H5V5H-5Z', words: 'device' },
  link: { colour: 'var(--purple)', shape: 'M-6 -6L6 6M6 -6L-6 6', words: 'link or planted fault' },
  interrupt: { colour: 'var(--sky)', shape: 'M0 -6A6 6 0 1 1 -.01 -6Z', words: 'interrupt' },
  memory: { colour: 'var(--orange)', shape: 'M0 -7V7', words: 'mapping, DMA and other' },
};

const TROUBLES =
  /^(smmu\.(fault|event|cmdq-error|command-error|evtq-overflow|eventq-overflow)|irq\.(spurious|foreign|blocked)|its\.|v2m\.|in-rc-msi\.|vmm\.killed|pciehp\.surprise|pci\.no-iommu|nic\.)/;

const BAD_PHASES = new Set(['cancel', 'rollback', 'failed']);

/** Which family an event is of. */
export function classOf({ kind, data }: PageEvent): EventClass {
  const { verdict, outcome } = data;
  const isBad =
    (verdict !== undefined && verdict !== 'ok') ||
    (outcome !== undefined && outcome !== 'completed' && outcome !== 'ok') ||
    (kind === 'migration.phase' && BAD_PHASES.has(String(data['phase']))) ||
    (kind === 'vfio.mig-state' && data['to'] === 'ERROR');
  if (isBad || TROUBLES.test(kind)) return 'trouble';
  if (/^(link|fault)\./.test(kind)) return 'link';
  if (/^(migration|vmm)\./.test(kind)) return 'movement';
  if (kind.startsWith('irq')) return 'interrupt';
  return /^(vfio|slot|pci|pciehp|iommu|smmu)\./.test(kind) ? 'device' : 'memory';
}

/** Whether a bar says what an event says; one that is trouble keeps its tick. */
export function isDrawnAsBar(event: PageEvent): boolean {
  return /^(migration\.(phase|round)|vfio\.mig-state)$/.test(event.kind) && classOf(event) !== 'trouble';
}

/** The fields of an event in one line. */
export function dataText({ data }: PageEvent): string {
  return Object.entries(data)
    .map(([key, value]) => `${key} ${String(value)}`)
    .join(' · ');
}

/** How much a range holds, in four digits or so. */
export function spanSize({ start, last }: PageSpan): string {
  const bytes = Number(BigInt(last) - BigInt(start) + 1n);
  const power = Math.min(Math.max(Math.floor(Math.log2(bytes) / 10), 0), UNITS.length - 1);
  return `${Number((bytes / 2 ** (10 * power)).toPrecision(4))} ${UNITS[power] ?? ''}`;
}

/** A range of a drawing in words: what a conflict says names both sides already. */
export function rangeWords(span: PageSpan | undefined): string {
  if (span === undefined) return '';
  const kind = RANGE_KINDS[span.kind]?.[1] ?? span.kind;
  const size = spanSize(span);
  return span.kind === 'conflict' ? span.label : `${span.start}-${span.last} (${size})  ${kind}: ${span.label}`;
}

/** A way of DMA in a few words. */
export function wayWords(way: PageWay | undefined): string {
  return way === undefined ? '' : `DMA of ${way.device} at ${way.iova}: ${way.where}`;
}
