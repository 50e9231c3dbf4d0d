/** The page of a schedule in a browser, opened from a disk without a network. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium, type Browser, type Locator, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Explanation } from '../../src/explore/explain.js';
import { viewAt } from '../../src/explore/trace.js';
import { scheduleHtml } from '../../src/report/schedule-html.js';
import { lockTags, lanesOf, statesAt } from '../../src/report/schedule-page/model.js';
import { drawnParts } from '../../src/report/schedule-page/tables.js';
import { corpusFailure, firstFailure, growingRoot, inOrder, lostInvalidation } from '../explore/failing.js';

const CHROMIUM = '/usr/bin/chromium';
const isHere = existsSync(CHROMIUM);
if (!isHere)
  process.stderr.write(`SKIP test/report/schedule-page.test.ts: ${CHROMIUM} (Debian package chromium) is not here\n`);

const { trace, race } = firstFailure(lostInvalidation());
const html = scheduleHtml(trace, race);

test('the document is one file of modest size in which nothing of a scenario is markup', () => {
  expect(html.length).toBeLessThan(200_000);
  expect(html).not.toContain('<script>window.broken');
  expect(html).toContain("default-src 'none'");
});

test('locks of one class have numbers of their own', () => {
  const lock = (lockClass: string): { label: string; lockClass: string } => ({ label: lockClass, lockClass });
  expect(lockTags({ locks: ['a', 'b', 'c', 'b'].map(lock) })).toEqual(['1', '2a', '3', '2b']);
});

test('a table has the columns that say something, and one page is no pages', () => {
  const { trace: grown } = growingRoot();
  const parts = drawnParts(viewAt(grown, 23), viewAt(grown, 24));
  const table = parts.find(({ name }) => name === 'page table of hwpt 4');
  expect(table?.columns).toEqual(['IOVA', 'to', '']);
  expect(table?.rows.map(({ cells }) => cells[2])).toEqual(['⚠ unreachable from the root', '']);
  expect(JSON.stringify(parts)).not.toContain('1 pages');
  const smmu = drawnParts(viewAt(trace, -1), viewAt(trace, 0)).find(({ name }) => name === 'page table of hwpt 3');
  expect(smmu?.columns).toContain('access');
});

test('who sleeps is said to, in a sentence', () => {
  const words = trace.steps.flatMap((_, at) => statesAt(trace, lanesOf(trace), at).map((state) => state.words));
  expect(words).toContain('waits until a set time, which may have come');
});

describe.skipIf(!isHere)(`the page of a schedule in ${CHROMIUM}`, () => {
  let directory = '';
  let address = '';
  let browser: Browser;
  let page: Page;
  const complaints: string[] = [];
  const requests: string[] = [];

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'iovaduct-schedule-'));
    const file = join(directory, 'lost.schedule.html');
    writeFileSync(file, html);
    address = pathToFileURL(file).href;
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, offline: true });
    page = await context.newPage();
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('request', (request) => requests.push(request.url()));
    await page.goto(address);
    await page.locator('.block').first().waitFor();
  });

  afterAll(async () => {
    expect(requests.filter((url) => url !== address)).toEqual([]);
    expect(complaints).toEqual([]);
    await browser.close();
    rmSync(directory, { recursive: true });
  });

  const heading = (): Promise<string> => page.locator('.details h2').innerText();
  const part = (name: string): Promise<string> => page.locator(`[data-part="${name}"]`).innerText();

  test('has a lane for each task, and begins where the run failed', async () => {
    const heads = await page.locator('.heads span').allInnerTexts();
    expect(heads).toEqual(expect.arrayContaining(['dma', 'unmapper', 'smmu0/commands']));
    expect(await heading()).toContain(`step ${trace.steps.length - 1} · dma`);
    expect(await page.locator('.block.broken').count()).toBe(1);
    expect(await page.locator('.block.race').count()).toBeGreaterThan(1);
    expect(await page.locator('h1').innerText()).toContain('</script>');
  });

  test('goes back by keys to when the page was mapped, and on again', async () => {
    expect(await part('page table of hwpt 3')).toContain('empty');
    await page.keyboard.press('Home');
    expect(await heading()).toContain('step 0 ');
    expect(await part('page table of hwpt 3')).toContain('0x1000000–0x1003fff');
    expect(await part('ioas 1')).toContain('mapped');
    await page.keyboard.press('ArrowRight');
    expect(await heading()).toContain('step 1 ');
    await page.keyboard.press('ArrowUp');
    expect(await heading()).toContain('step 0 ');
    await page.keyboard.press('End');
    expect(await part('TLB')).toContain('no table says so');
  });

  test('goes where one clicks, and marks what changed there', async () => {
    const at = trace.steps.findIndex(({ to }) => to === 'iommufd:unmap-hidden');
    await page.getByRole('slider').fill(String(at));
    expect(await heading()).toContain(`step ${at} `);
    expect(await page.locator('[data-part="ioas 1"] tr.changed').innerText()).toContain('going');
    await page.locator('.pairs button').first().click();
    expect(await heading()).toContain(`step ${race.pairs[0]?.first.at ?? -1} `);
  });

  test('shows only the steps that touch a word, or the tasks that are wanted', async () => {
    const word = page.locator('.accesses button', { hasText: 'pins of 0x40000000' });
    await word.click();
    await page.getByLabel('only steps that touch it').check();
    const touching = trace.steps.filter(({ accesses }) =>
      accesses.some((access) => access.word === race.pairs[0]?.word),
    );
    expect(await page.locator('.block').count()).toBe(touching.length);
    await page.getByLabel('only steps that touch it').uncheck();
    await page.getByLabel('hardware and daemons').uncheck();
    expect(await page.locator('.heads span').allInnerTexts()).not.toContain('smmu0/commands');
  });

  /** Another schedule, in a page of its own. */
  const open = async (
    { trace: other, race: found }: Pick<Explanation, 'trace' | 'race'>,
    width = 1280,
  ): Promise<Page> => {
    const file = join(directory, `${other.title.replaceAll(/\W+/g, '-')}.html`);
    writeFileSync(file, scheduleHtml(other, found));
    const opened = await browser.newPage({ viewport: { width, height: 1000 } });
    opened.on('pageerror', (error) => complaints.push(error.message));
    await opened.goto(pathToFileURL(file).href);
    await opened.locator('.details h2').waitFor();
    return opened;
  };

  test('tells the locks apart that one class has, draws nothing beyond the last row, and names the call that fails', async () => {
    const grown = await open(growingRoot());
    const tags = await grown.locator('.hold title').allTextContents();
    expect(tags).toEqual(expect.arrayContaining(['3a mutex iopt:pages_mutex #1', '3b mutex iopt:pages_mutex #2']));
    const boxes = await boxesOf(grown.locator('.hold rect'));
    const broken = await grown.locator('.block.broken rect').boundingBox();
    const end = (broken?.y ?? 0) + (broken?.height ?? 0) + 1;
    expect(boxes.filter(({ y, height }) => y + height > end)).toEqual([]);
    const numbers = await boxesOf(grown.locator('.hold .lock-number'));
    const overlapping = numbers.filter((a, i) =>
      numbers.some((b, j) => i < j && overlap(a.x, a.width, b.x, b.width) && overlap(a.y, a.height, b.y, b.height)),
    );
    expect(overlapping).toEqual([]);
    expect(await grown.locator('.details > p').first().innerText()).toContain('then in unmap, which fails here');
    const values = grown.locator('[data-part="memory"] td, [data-part="page table of hwpt 4"] td');
    expect((await boxesOf(values)).filter(({ height }) => height > 30)).toEqual([]);
    await grown.close();
  });

  test('cuts no label of three lanes where there is room, and has a tooltip for each', async () => {
    const lost = await open({ trace, race }, 1440);
    const labels = await lost.locator('.block text').allTextContents();
    const gates = labels.map((text) => text.replace(/^[◆◇✖] /, ''));
    expect(gates).toEqual(expect.arrayContaining(['iommufd:unmap-invalidated', '→ iommufd:unmap-invalidated']));
    expect(await lost.locator('.block > title').count()).toBe(await lost.locator('.block').count());
    await lost.close();
  });

  test('has a row for a failure after the last step, and for one before the first', async () => {
    const lost = await open(corpusFailure('lost-event'));
    expect(await lost.locator('.block.broken').textContent()).toContain('✖ (teardown)');
    expect(await lost.locator('.details h2').innerText()).toContain('(teardown)');
    await lost.keyboard.press('ArrowUp');
    expect(await lost.locator('.details h2').innerText()).toMatch(/^step \d+ /);
    await lost.getByRole('button', { name: '✖ end' }).click();
    expect(await lost.locator('.details h2').innerText()).toContain('(teardown)');
    await lost.close();
    const setup = await open(
      inOrder(`title: No setup
kernel-only: { iommu: mock }
setup:
  - device: { as: nic }
  - unmap: { iova: 0x1000000 }
tasks: { a: [ { map: { length: 4 KiB } } ] }
`),
    );
    expect(await setup.locator('.block.broken').textContent()).toContain('✖ (setup)');
    expect(await setup.locator('.details').innerText()).toContain('No task has made a step');
    await setup.close();
  });

  test('says so where no step touches a word', async () => {
    const { trace: grown, ...rest } = growingRoot();
    const untouched = await open({
      ...rest,
      trace: { ...grown, words: [...grown.words, { object: 'quiet', field: 'word' }] },
    });
    await untouched.getByLabel('word').selectOption('quiet .word');
    expect(await untouched.locator('.history').innerText()).toContain('none in these steps');
    await untouched.close();
  });
});

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

async function boxesOf(all: Locator): Promise<Box[]> {
  const boxes = await Promise.all((await all.all()).map((one) => one.boundingBox()));
  return boxes.filter((box) => box !== null);
}

function overlap(a: number, aLength: number, b: number, bLength: number): boolean {
  return a < b + bLength && b < a + aLength;
}
