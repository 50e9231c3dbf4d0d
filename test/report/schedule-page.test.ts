/** The page of a schedule in a browser, opened from a disk without a network. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { scheduleHtml } from '../../src/report/schedule-html.js';
import { firstFailure, lostInvalidation } from '../explore/failing.js';

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
});
