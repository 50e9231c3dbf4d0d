/** The watcher of structures in use: the driver's own writers pass, wrong ones of each kind do not. */
import { describe, expect, test } from 'vitest';
import { CD, STE, STE_CONFIG } from '../../src/hardware/smmu/records.js';
import { LegalityChecker } from '../../src/hardware/smmu/legality.js';
import { TLB_KIND } from '../../src/hardware/smmu/tlb.js';
import {
  abortSte,
  bypassSte,
  contextDescriptor,
  ENTRY_BYTES,
  stage1Ste,
  stage2Ste,
  writeEntry,
} from '../../src/kernel/iommu/arm-smmu-v3/entries.js';
import { cdSafeBits, cdUsedBits, steSafeBits, steUsedBits } from '../../src/hardware/smmu/used-bits.js';
import { DmaMemory } from '../../src/kernel/iommu/dma-memory.js';
import { Arena } from '../../src/core/arena.js';
import { PageTable } from '../../src/core/page-table.js';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../../src/kernel/iommu/domain.js';
import { iommu_attach_group_handle } from '../../src/kernel/iommu/group.js';
import type { Task } from '../../src/runtime/task.js';
import { Machine } from './machine.js';

const STREAM = 5;
const arena = Arena.create({ kernelFrames: 256, storageFrames: 64, kernelBasePfn: 0x1000 });

function table(stage: 1 | 2): PageTable {
  const made = PageTable.create(arena, {
    stage,
    granuleShift: 12,
    inputBits: 40,
    outputBits: 48,
    pageSizes: [4096],
  });
  if (typeof made === 'number') throw new Error('no memory');
  return made;
}

/** An entry in memory that is watched. */
function watched(kind: 'STE' | 'CD', initial: Uint32Array): { memory: DmaMemory; checker: LegalityChecker } {
  const memory = DmaMemory.alloc(arena, ENTRY_BYTES);
  if (memory === undefined) throw new Error('no memory');
  memory.write(0, initial);
  const checker = new LegalityChecker('smmu0', () => true);
  memory.watch = (offset, lo, hi) => {
    checker.storeEntry(kind, 'entry', [STREAM], memory.read(0, ENTRY_BYTES / 4), offset / 8, lo, hi);
  };
  return { memory, checker };
}

function sync(checker: LegalityChecker): void {
  checker.configInvalidated(STREAM, STREAM);
  checker.synced();
}

/** Stores an entry word by word, as nobody may. */
function storeAll(memory: DmaMemory, target: Uint32Array): void {
  for (let i = 0; i < 8; i++) memory.store64(i * 8, target[i * 2] ?? 0, target[i * 2 + 1] ?? 0);
}

function run<T>(task: Task<T>): void {
  for (let step = task.next(); step.done !== true; step = task.next());
}

const stes: Readonly<Record<string, Uint32Array>> = {
  abort: abortSte(),
  bypass: bypassSte(),
  'stage 1': stage1Ste(0x5000_0000, false),
  'stage 1 elsewhere': stage1Ste(0x6000_0000, false, true),
  'stage 2': stage2Ste(table(2), 7),
  'stage 2 of another': stage2Ste(table(2), 9, true),
  nothing: new Uint32Array(16),
};
const cds: Readonly<Record<string, Uint32Array>> = {
  nothing: CD.make({}),
  'a table': contextDescriptor(table(1), 3, false),
  another: contextDescriptor(table(1), 4, true),
};

describe("the driver's writer", () => {
  const pairs = (all: Readonly<Record<string, Uint32Array>>): [string, string][] =>
    Object.keys(all).flatMap((from) => Object.keys(all).map((to): [string, string] => [from, to]));

  test.each(pairs(stes))('an STE from %s to %s', (from, to) => {
    const { memory, checker } = watched('STE', stes[from] ?? abortSte());
    const entry = { memory, offset: 0, usedBits: steUsedBits, safeBits: steSafeBits, validBit: 1 };
    run(
      writeEntry(
        {
          ...entry,
          *sync(): Task<void> {
            sync(checker);
          },
        },
        stes[to] ?? abortSte(),
      ),
    );
    expect(memory.read(0, 16)).toEqual(stes[to]);
  });

  test.each(pairs(cds))('a CD from %s to %s', (from, to) => {
    const { memory, checker } = watched('CD', cds[from] ?? CD.make({}));
    const entry = { memory, offset: 0, usedBits: cdUsedBits, safeBits: cdSafeBits, validBit: 2 ** 31 };
    run(
      writeEntry(
        {
          ...entry,
          *sync(): Task<void> {
            sync(checker);
          },
        },
        cds[to] ?? CD.make({}),
      ),
    );
    expect(memory.read(0, 16)).toEqual(cds[to]);
  });
});

describe('wrong writers', () => {
  test('of an STE: word by word while it is valid', () => {
    const { memory } = watched('STE', stage1Ste(0x5000_0000, false));
    expect(() => storeAll(memory, stage2Ste(table(2), 7))).toThrow(/torn STE of stream 0x5/);
  });

  test('of an STE: made valid before what it says was synced', () => {
    const target = stage2Ste(table(2), 7);
    const { memory, checker } = watched('STE', new Uint32Array(16));
    for (let i = 1; i < 8; i++) memory.store64(i * 8, target[i * 2] ?? 0, target[i * 2 + 1] ?? 0);
    expect(() => memory.store64(0, target[0] ?? 0, target[1] ?? 0)).toThrow(/torn STE/);
    const good = watched('STE', new Uint32Array(16));
    for (let i = 1; i < 8; i++) good.memory.store64(i * 8, target[i * 2] ?? 0, target[i * 2 + 1] ?? 0);
    sync(good.checker);
    good.memory.store64(0, target[0] ?? 0, target[1] ?? 0);
    expect(checker).toBeInstanceOf(LegalityChecker);
  });

  test('of an STE: an invalidation without CMD_SYNC is none', () => {
    const { memory, checker } = watched('STE', STE.make({ V: 1, Config: STE_CONFIG.S1_TRANS, S1CIR: 1 }));
    memory.store64(0, 0, 0);
    checker.configInvalidated(STREAM, STREAM);
    expect(() => memory.store64(8, 0xff, 0)).toThrow(/torn STE/);
    const other = watched('STE', STE.make({ V: 1, Config: STE_CONFIG.S1_TRANS, S1CIR: 1 }));
    other.memory.store64(0, 0, 0);
    other.checker.configInvalidated(STREAM + 1, STREAM + 1);
    other.checker.synced();
    expect(() => other.memory.store64(8, 0xff, 0)).toThrow(/torn STE/);
  });

  test('of a CD: another table under the same valid bit', () => {
    const { memory } = watched('CD', contextDescriptor(table(1), 3, false));
    expect(() => storeAll(memory, contextDescriptor(table(1), 4, true))).toThrow(/torn CD/);
  });

  test('of a CD that two streams use: an invalidation from before the store counts for neither', () => {
    const checker = new LegalityChecker('smmu0', () => true);
    const live = contextDescriptor(table(1), 3, false);
    checker.storeEntry('CD', 'cd', [1, 2], live, 0, (live[0] ?? 0) ^ 1, live[1] ?? 0);
    checker.configInvalidated(1, 1, true);
    checker.storeEntry('CD', 'cd', [1, 2], live, 0, (live[0] ?? 0) ^ 2, live[1] ?? 0);
    checker.configInvalidated(2, 2, true);
    checker.synced();
    expect(() => checker.storeEntry('CD', 'cd', [1, 2], live, 1, 0, 0)).toThrow(/torn CD/);
  });

  test('of translations: made before what was broken is invalidated', () => {
    const checker = new LegalityChecker('smmu0', () => true);
    const watch = checker.watchTable(1, 3, checker, 0x1000);
    watch.mapped(0x1000, 0x4000);
    watch.unmapped(0x2000, 0x1000, false);
    watch.mapped(0x8000, 0x1000);
    expect(() => watch.mapped(0x2000, 0x1000)).toThrow(/break-before-make/);
    const kinds = 1 << TLB_KIND.STAGE1;
    checker.translationsInvalidated({ kinds, asid: 4 }, true);
    checker.translationsInvalidated({ kinds: 1 << TLB_KIND.STAGE2 }, true);
    checker.synced();
    expect(() => watch.mapped(0x2000, 0x1000)).toThrow(/break-before-make/);
    checker.translationsInvalidated({ kinds, asid: 3, range: { start: 0x2000, last: 0x27ff, half: 0 } }, true);
    checker.synced();
    expect(() => watch.mapped(0x2800, 0x800)).toThrow(/break-before-make/);
    checker.translationsInvalidated({ kinds, asid: 3, range: { start: 0x2800, last: 0x2fff, half: 0 } }, true);
    expect(() => watch.mapped(0x2000, 0x1000)).toThrow(/break-before-make/);
    checker.synced();
    watch.mapped(0x2000, 0x1000);
  });

  test('of tables: given back after an invalidation of leaves alone', () => {
    const checker = new LegalityChecker('smmu0', () => true);
    const watch = checker.watchTable(2, 9, checker, 0x1000);
    watch.unmapped(0x200000, 0x200000, true);
    const kinds = 1 << TLB_KIND.STAGE2;
    checker.translationsInvalidated({ kinds, vmid: 9, range: { start: 0, last: 0xffffff, half: 0 } }, true);
    checker.synced();
    expect(() => watch.tablesFreed(0x200000, 0x200000)).toThrow(/gives back a table/);
    expect(() => watch.mapped(0x3ff000, 0x1000)).toThrow(/break-before-make/);
    watch.tablesFreed(0x400000, 0x200000);
    checker.translationsInvalidated({ kinds, vmid: 9, range: { start: 0x201000, last: 0x201fff, half: 0 } }, false);
    checker.synced();
    watch.tablesFreed(0x200000, 0x200000);
    watch.mapped(0x3ff000, 0x1000);
  });

  test('of translations, on a whole machine: a domain that forgets to invalidate', () => {
    const m = new Machine();
    const device = m.addDevice('0000:01:00.0', 0x100);
    const domain = m.domain(device, 0);
    m.run(
      iommu_attach_group_handle(domain, m.group(device), {
        domain,
        *prepare_msi() {
          return 0n;
        },
      }),
    );
    const prot = IOMMU_READ | IOMMU_WRITE | IOMMU_CACHE;
    m.run(domain.map(0x10000, 0x90000000, 0x1000, prot));
    m.run(domain.unmap(0x10000, 0x1000));
    m.run(domain.map(0x10000, 0x91000000, 0x1000, prot));
    // What unmap does, without the invalidation.
    const lazy = domain.unmap(0x10000, 0x1000);
    for (let step = lazy.next(); step.done !== true && step.value !== 'smmu:cmdq-issue'; step = lazy.next());
    const again = domain.map(0x10000, 0x92000000, 0x1000, prot);
    expect(() => {
      for (let step = again.next(); step.done !== true; step = again.next());
    }).toThrow(/break-before-make/);
  });
});
