/**
 * The C reference of `iovaduct bench`: the same page-table work, written plainly in C, compiled on the spot and timed on the
 * same machine in the same run, so that the figure that is printed is a ratio.
 *
 * 4 levels of 512 64-bit entries, a bump allocator for tables, relaxed atomics; one process per measurement, which prints
 * the nanoseconds per page of its fastest of several repeats.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const SOURCE = String.raw`
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENTRIES 512
#define VALID 3ull
#define ADDRESS 0x0000fffffffff000ull
#define DBM (1ull << 51)
#define READ_ONLY (1ull << 7)
typedef _Atomic uint64_t entry;

static uint64_t pages;
static char *pool, *pool_end, *next_table;
static entry *root;

static entry *table_alloc(void) {
  if (next_table == pool_end) abort();
  entry *table = (entry *)next_table;
  next_table += 4096;
  return table;
}
static void reset(void) {
  memset(pool, 0, (size_t)(next_table - pool));
  next_table = pool;
  root = table_alloc();
}
static entry *descend(uint64_t page, int make) {
  entry *table = root;
  for (int level = 0; level < 3; level++) {
    entry *slot = &table[(page >> (27 - 9 * level)) & 511];
    uint64_t value = atomic_load_explicit(slot, memory_order_relaxed);
    if (!value) {
      if (!make) return NULL;
      entry *fresh = table_alloc();
      value = (uint64_t)((char *)fresh - pool + 4096) | VALID;
      uint64_t expected = 0;
      atomic_compare_exchange_strong_explicit(slot, &expected, value, memory_order_release, memory_order_relaxed);
    }
    table = (entry *)(pool + (value & ADDRESS) - 4096);
  }
  return table;
}
static void map_each(void) {
  for (uint64_t page = 0; page < pages; page++)
    atomic_store_explicit(&descend(page, 1)[page & 511], (page << 12) | DBM | VALID, memory_order_release);
}
static void unmap_each(void) {
  for (uint64_t page = 0; page < pages; page++)
    atomic_store_explicit(&descend(page, 0)[page & 511], 0, memory_order_release);
}
static void map_range(void) {
  for (uint64_t page = 0; page < pages; page += 512) {
    entry *leaf = descend(page, 1);
    for (uint64_t i = 0; i < 512; i++) atomic_store_explicit(&leaf[i], ((page + i) << 12) | DBM | VALID, memory_order_release);
  }
}
static void unmap_range(void) {
  for (uint64_t page = 0; page < pages; page += 512) {
    entry *leaf = descend(page, 0);
    for (uint64_t i = 0; i < 512; i++) atomic_store_explicit(&leaf[i], 0, memory_order_release);
  }
}
static uint64_t sink;
static void walk(void) {
  uint64_t sum = 0;
  for (uint64_t page = 0; page < pages; page++) {
    entry *table = root;
    for (int level = 0; level < 3; level++)
      table = (entry *)(pool + (atomic_load_explicit(&table[(page >> (27 - 9 * level)) & 511], memory_order_relaxed) & ADDRESS) - 4096);
    sum += atomic_load_explicit(&table[page & 511], memory_order_relaxed) & ADDRESS;
  }
  sink = sum;
}
static void dirty_scan(void) {
  uint64_t dirty = 0;
  for (uint64_t page = 0; page < pages; page += 512) {
    entry *leaf = descend(page, 0);
    for (uint64_t i = 0; i < 512; i++) {
      uint64_t value = atomic_load_explicit(&leaf[i], memory_order_relaxed);
      if ((value & DBM) && !(value & READ_ONLY)) {
        dirty++;
        atomic_fetch_or_explicit(&leaf[i], READ_ONLY, memory_order_relaxed);
      }
    }
  }
  sink = dirty;
}
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}
static double timed(void (*work)(void)) {
  double start = now();
  work();
  return (now() - start) / (double)pages;
}
static void note(double *best, double value) {
  if (value < *best) *best = value;
}
int main(int argc, char **argv) {
  pages = strtoull(argv[1], NULL, 10);
  int repeats = argc > 2 ? atoi(argv[2]) : 5;
  size_t bytes = (pages / 512 + 64) * 4096;
  pool = aligned_alloc(4096, bytes);
  pool_end = pool + bytes;
  memset(pool, 0, bytes);
  next_table = pool;
  double me = 1e9, ue = 1e9, mr = 1e9, ur = 1e9, wk = 1e9, ds = 1e9;
  for (int i = 0; i < repeats; i++) {
    reset();
    note(&me, timed(map_each));
    note(&wk, timed(walk));
    note(&ds, timed(dirty_scan));
    note(&ue, timed(unmap_each));
    reset();
    note(&mr, timed(map_range));
    note(&ur, timed(unmap_range));
  }
  printf("{\"mapEach\":%g,\"unmapEach\":%g,\"mapRange\":%g,\"unmapRange\":%g,\"walk\":%g,\"dirtyScan\":%g}\n", me, ue, mr, ur, wk, ds);
  return sink == 42;
}
`;

/** Nanoseconds per 4 KiB page of each kind of page-table work. */
export interface PageTableTimes {
  readonly mapEach: number;
  readonly unmapEach: number;
  readonly mapRange: number;
  readonly unmapRange: number;
  readonly walk: number;
  readonly dirtyScan: number;
}

/** Compiles and runs the reference over `pages` pages (a multiple of 512); undefined where there is no C compiler. */
export function measureReference(pages: number, repeats: number): PageTableTimes | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'iovaduct-bench-'));
  try {
    const source = join(folder, 'reference.c');
    const binary = join(folder, 'reference');
    writeFileSync(source, SOURCE);
    const compiled = spawnSync('gcc', ['-O2', '-std=c11', '-o', binary, source], { encoding: 'utf8' });
    if (compiled.error !== undefined || compiled.status !== 0) return undefined;
    const ran = spawnSync(binary, [String(pages), String(repeats)], { encoding: 'utf8' });
    if (ran.status !== 0) throw new Error(`the C reference failed: ${ran.stderr}`);
    return JSON.parse(ran.stdout) as PageTableTimes;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
