/**
 * The report in a browser, opened from a disk without a network: what a stranger with a failed scenario does, by mouse and by
 * keyboard alone.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { iovaduct } from './cli.js';
import { LOST_INVALIDATION, onHost } from '../fixtures/on-host.js';

const CHROMIUM = '/usr/bin/chromium';
const isHere = existsSync(CHROMIUM);
if (!isHere) process.stderr.write(`SKIP test/e2e/report.test.ts: ${CHROMIUM} (Debian package chromium) is not here\n`);

/** The expectation in line 12 does not hold, nor the one in line 14; both are planted. */
const PLANTED = `title: A wrong expectation </script><script>window.broken = 1</script>
covers: [B6.1, ZZ-99]
hosts:
  b: { profile: amazon-alpine-v3, allow-unsafe-interrupts: true }
  d: { profile: hisilicon-d05 }
guests:
  vm: { on: b, vmm: qemu-virt, memory: 4 GiB, content: zero }
  other: { on: d, vmm: qemu-virt, memory: 4 GiB, content: zero, hotplug-policy: reject }
steps:
  - boot: other
  - plug: { guest: other, device: "0000:7d:00.1", as: vf }
  - expect: { of: vf, verdict: ok }
  - boot: vm
  - plug: { guest: vm, device: "0000:01:00.0" }
  - dma: { guest: vm, device: "0000:01:00.0", write: { to: 0xfbe00000, length: 4 KiB }, as: frame }
  - expect: { of: frame, verdict: ok }
`;

/** Who wrote the expectation does not know why. */
const STALE = onHost(
  'After an unmap the device is refused',
  `${LOST_INVALIDATION}  - expect: { of: after, verdict: refused, landed: { kind: aborted } }
`,
);

const CARD = '{ bdf: "0000:01:00.0", vendor: 0x1d0f, device: 0x0c0a, class: 0x120000, migration: { context: 1 MiB } }';

/** A device goes over with its guest, and breaks on the way back. */
const DEVICE_MOVES = `title: A device goes over with its guest, and breaks on the way back
hosts:
  a: { profile: arm-generic, devices: [${CARD}] }
  b: { profile: arm-generic, devices: [${CARD}] }
links:
  - { between: [a, b], bandwidth: 10 Gbit/s, latency: 50 us }
guests:
  vm: { on: a, vmm: qemu-virt, memory: 1 GiB, content: zero }
steps:
  - boot: vm
  - plug: { guest: vm, device: "0000:01:00.0" }
  - migrate: { guest: vm, to: b, as: moved }
  - expect: { of: moved, verdict: ok }
  - fault: { host: b, fault: vfio.mig-error, skip: 2, count: 1 }
  - migrate: { guest: vm, to: a, as: back }
  - expect: { of: back, verdict: refused, reason: device-failed }
`;

describe.skipIf(!isHere)(`the report in ${CHROMIUM}`, () => {
  let directory = '';
  let address = '';
  let browser: Browser;
  let context: BrowserContext;
  let page: Page;
  const complaints: string[] = [];
  const requests: string[] = [];

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'iovaduct-report-'));
    mkdirSync(join(directory, 'faulty'));
    writeFileSync(join(directory, 'faulty/planted.yaml'), PLANTED);
    writeFileSync(join(directory, 'faulty/stale.yaml'), STALE);
    mkdirSync(join(directory, 'moving'));
    writeFileSync(join(directory, 'moving/device-moves.yaml'), DEVICE_MOVES);
    const own = ['faulty', 'moving'].map((family) => join(directory, family));
    const migrations = ['clean/dirty-guest', 'rates/no-convergence'].map((name) => `scenarios/migration/${name}.yaml`);
    const paths = [...own, ...migrations, 'scenarios/silent'];
    const { status, stderr } = iovaduct('run', ...paths, '--placement', 'inline', '--report', directory);
    expect(status, stderr).toBe(1);
    address = pathToFileURL(join(directory, 'report.html')).href;
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  });

  afterAll(async () => {
    await browser.close();
    rmSync(directory, { recursive: true });
  });

  beforeEach(async () => {
    complaints.length = 0;
    requests.length = 0;
    context = await browser.newContext({ viewport: { width: 1300, height: 900 }, offline: true });
    page = await context.newPage();
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('request', (request) => requests.push(request.url()));
  });

  /** Whatever a test did: nothing was loaded but the file, and nothing was complained about. */
  afterEach(async () => {
    const loaded = requests.map((url) => url.replace(/#.*$/, ''));
    expect(loaded.filter((url) => url !== address)).toEqual([]);
    expect(complaints).toEqual([]);
    await context.close();
  });

  async function open(hash = ''): Promise<void> {
    await page.goto(address + hash);
    await page.locator('article').first().waitFor();
  }

  const names = (): Promise<string[]> => page.locator('article .name').allTextContents();
  const shown = (): Promise<string> => page.locator('form output').innerText();

  test('opens, failures first, and a script in a title is only text', async () => {
    await open();
    const [first, ...others] = await names();
    expect(first).toBe('planted');
    expect(others).toContain('dirty-guest');
    expect(await page.locator('article .title').first().innerText()).toContain('</script>');
    expect(await page.evaluate('window.broken')).toBeUndefined();
    expect(await page.locator('.totals').innerText()).toContain('2 failed');
  });

  test('search looks at titles, covers and the text of checks', async () => {
    await open();
    const search = page.getByRole('searchbox');
    await search.fill('zz-99');
    expect(await names()).toEqual(['planted']);
    expect(await shown()).toMatch(/^1 of /);
    await search.fill('eaddrinuse vf:');
    expect(await names()).toEqual(['planted']);
    await search.fill('no such words');
    expect(await names()).toEqual([]);
    await page.getByRole('button', { name: 'show everything' }).click();
    expect((await names()).length).toBeGreaterThan(10);
  });

  test('family, verdict and covers filter, and a chip takes its filter back', async () => {
    await open();
    const all = (await names()).length;
    await page.getByLabel('Family').selectOption('rates');
    expect(await names()).toContain('no-convergence');
    expect(await names()).not.toContain('planted');
    await page.getByLabel('Family').selectOption('');
    await page.getByRole('button', { name: /2 failed/ }).click();
    expect(await names()).toEqual(['planted', 'stale']);
    await page.getByRole('button', { name: /2 failed/ }).click();
    await page.locator('article').getByRole('button', { name: 'RR-22', exact: true }).first().click();
    const covering = await names();
    expect(covering).toContain('seattle-peer');
    expect(covering.length).toBeLessThan(all);
    await page.getByRole('button', { name: 'RR-22 remove this filter' }).click();
    expect(await names()).toHaveLength(all);
  });

  test('from the top to the cause of a failed scenario in at most three clicks', async () => {
    await open();
    const failed = page.locator('#page article.fail .check.fail');
    // The first failed scenario is open already.
    expect(await failed.count()).toBe(2);
    expect(await failed.first().innerText()).toContain('expected verdict ok, got refused');
    // One click: the step in the timeline, marked, in view, with what it came to.
    await failed.first().getByText('in the timeline').click();
    const mark = page.locator('a.mark.selected');
    await mark.waitFor();
    expect(await mark.getAttribute('aria-label')).toContain('EADDRINUSE');
    expect(await mark.boundingBox()).toMatchObject({ y: expect.any(Number) as number });
    const panel = page.locator('.panel.bad');
    expect(await panel.innerText()).toContain('hardware MSI of its@c6000000');
    // Two: the range that is in conflict, in the drawing of addresses.
    await panel.getByText('0xc6010000-0xc601ffff').click();
    await expect.poll(() => page.url()).toContain('/range/');
    await expect.poll(() => mark.getAttribute('aria-label')).toContain('lies in');
    // Three: the line of the file.
    await failed.first().getByText('planted.yaml:12').click();
    const line = page.locator('.line.selected');
    await line.waitFor({ state: 'visible' });
    expect(await line.innerText()).toContain('expect: { of: vf, verdict: ok }');
  });

  test('three clicks from the list to a planted fault: the failed check, the event on the timeline, the end of the DMA', async () => {
    await open();
    const article = page.locator('article[aria-labelledby="head-stale"]');
    const causes = page.getByRole('list', { name: 'Failed checks of stale' });
    expect(await causes.innerText()).toContain('got silent');
    expect(await article.locator('.body').count()).toBe(0);

    await causes.getByRole('link', { name: /^✖ after: verdict refused/ }).click();
    const check = article.locator('.check.fail');
    await article.locator('.check.fail.selected').waitFor();
    expect(await check.innerText()).toContain('expected verdict refused');
    expect(await check.innerText()).toContain('fault in step 4: smmu.drop-tlbi on in a');
    const wayLink = check.getByRole('link', { name: /^DMA of 0000:01:00.0 at 0x10000000/ });

    await check.getByRole('link', { name: /^fault in step 4/ }).click();
    await article.locator('[data-at="stale/step/3"].selected').waitFor();
    expect(await article.locator('.panel').innerText()).toContain('smmu.drop-tlbi on in a');
    const events = await article
      .locator('a.mark[data-at*="stale/event/"]')
      .evaluateAll((all) => all.map((mark) => mark.getAttribute('aria-label')));
    expect(events.some((words) => words?.includes('a: fault.arm fault smmu.drop-tlbi'))).toBe(true);

    await wayLink.click();
    const way = article.locator('.way.stray.selected');
    await way.waitFor();
    expect(await way.innerText()).toMatch(/write 0x10000000[\s\S]*system bus[\s\S]*RAM[\s\S]*memory that is not p's/);
  });

  test("a device's states are segments on the lane of each host, and ERROR is trouble", async () => {
    await open('#device-moves');
    const article = page.locator('article', { hasText: 'device-moves' });
    const states = async (host: string): Promise<string[]> => {
      const row = article.getByRole('group', { name: `host ${host}: 0000:01:00.0` });
      const words = await row
        .locator('a.mark')
        .evaluateAll((all) => all.map((mark) => mark.getAttribute('aria-label') ?? ''));
      return words.map((text) => / is (\w+) from /.exec(text)?.[1] ?? text);
    };
    await article.locator('a.mark').first().waitFor();
    expect(await states('a')).toEqual(expect.arrayContaining(['PRE_COPY', 'STOP_COPY', 'RESUMING']));
    expect(await states('b')).toContain('ERROR');
    await article
      .getByRole('link', { name: /rollback/ })
      .first()
      .waitFor();
    const error = article.getByRole('link', { name: /vfio\.mig-state .* to ERROR/ });
    await error.first().click();
    await expect.poll(() => article.locator('.panel').innerText()).toContain('to ERROR');
    await article.getByText('Rounds as a table').first().click();
    const rounds = article.getByRole('table', { name: 'Rounds of vm from a to b' });
    expect(await rounds.innerText()).toContain('Bytes of device state');
  });

  test('a DMA that ended elsewhere is shown with where and why', async () => {
    await open('#planted');
    await page.locator('.check.fail').nth(1).getByText('DMA of 0000:01:00.0').click();
    const way = page.locator('.way.stray.selected');
    await way.waitFor();
    expect(await way.innerText()).toContain('msix@fbe00000');
    expect(await way.innerText()).toContain('swallowed it');
    await way.getByText('in the drawing').click();
    await expect
      .poll(() => page.locator('a.mark.selected').getAttribute('aria-label'))
      .toContain('DMA that left its way');
  });

  test('a migration has phases, rounds, and a chart with its numbers as a table', async () => {
    await open('#dirty-guest');
    const article = page.locator('article', { hasText: 'dirty-guest' });
    await article.locator('canvas').first().waitFor();
    expect(await article.locator('canvas').count()).toBe(1);
    const marks = await article
      .locator('a.mark')
      .evaluateAll((all) => all.map((mark) => mark.getAttribute('aria-label')));
    expect(marks.some((words) => words?.includes(': precopy from'))).toBe(true);
    expect(marks.some((words) => words?.includes('dirty pages left'))).toBe(true);
    await article.getByText('Rounds as a table').last().click();
    expect(
      await article
        .getByRole('table', { name: /^Rounds of/ })
        .last()
        .innerText(),
    ).toContain('guest stopped');
    const before = await article.locator('[data-at="dirty-guest/step/0"] rect').getAttribute('width');
    await article.getByRole('button', { name: 'true to scale' }).click();
    const after = await article.locator('[data-at="dirty-guest/step/0"] rect').getAttribute('width');
    expect(Number(after)).toBeLessThan(Number(before));
  });

  test('an address leads to a scenario, even one that a filter hides', async () => {
    await open('#xgene-doorbell');
    const head = page.locator('article', { hasText: 'xgene-doorbell' }).getByRole('button', { expanded: true });
    await head.waitFor();
    await expect.poll(() => head.evaluate((element) => element === element.ownerDocument.activeElement)).toBe(true);
    await page.getByRole('searchbox').fill('planted');
    expect(await names()).not.toContain('dirty-guest');
    await page.goto(`${address}#dirty-guest/step/2`);
    await page.locator('[data-at="dirty-guest/step/2"].selected').waitFor();
  });

  test('the keyboard alone reaches everything on the way, with visible focus', async () => {
    await open();
    await page.keyboard.press('/');
    await page.keyboard.type('zz-99');
    /** Presses Tab until an element that fits has the focus; every stop on the way shows that it has it. */
    const tabTo = async (selector: string): Promise<void> => {
      // The page moves the focus to what was chosen a few frames later; Tab goes on from there.
      await page.evaluate(async () => {
        for (let frames = 0; frames < 4; frames++) await new Promise(requestAnimationFrame);
      });
      for (let presses = 0; presses < 60; presses++) {
        await page.keyboard.press('Tab');
        const focus = page.locator(':focus-visible');
        if ((await focus.count()) === 0) continue;
        const isVisible = await focus.evaluate((element) => {
          const outline = getComputedStyle(element);
          const rect = element.querySelector('rect');
          const stroke = rect === null ? 0 : Number.parseFloat(getComputedStyle(rect).strokeWidth);
          return (outline.outlineStyle !== 'none' && outline.outlineWidth !== '0px') || stroke >= 3;
        });
        expect(isVisible, await focus.evaluate((element) => element.outerHTML.slice(0, 200))).toBe(true);
        if (await focus.evaluate((element, wanted) => element.matches(wanted), selector)) return;
      }
      throw new Error(`Tab does not reach ${selector}`);
    };
    await tabTo('article h2 button');
    await page.keyboard.press('Enter');
    expect(await page.locator('article .body').count()).toBe(0);
    await page.keyboard.press('Enter');
    await tabTo('.check.fail a[href$="/step/1"]');
    await page.keyboard.press('Enter');
    const mark = page.locator('a.mark.selected');
    await expect.poll(() => mark.evaluate((element) => element === element.ownerDocument.activeElement)).toBe(true);
    // Along the row: the next step, told in a tooltip, kept with Enter.
    await page.keyboard.press('ArrowRight');
    const focus = page.locator('a.mark:focus-visible');
    expect(await focus.getAttribute('data-at')).toBe('planted/step/2');
    expect(await page.getByRole('tooltip').innerText()).toContain('boot, line 13');
    await page.keyboard.press('End');
    expect(await focus.getAttribute('data-at')).toBe('planted/step/4');
    await page.keyboard.press('Enter');
    await expect.poll(() => page.locator('.panel.bad').innerText()).toContain('swallowed it');
    await tabTo('.panel a[href$="/line/15"]');
    await page.keyboard.press('Enter');
    await expect.poll(() => page.locator('.line.selected').innerText()).toContain('0xfbe00000');
  });

  test('marks, buttons and fields have names', async () => {
    await open('#planted');
    await page.locator('a.mark').first().waitFor();
    const nameless = await page.locator('a, button, input, select, summary, [role=img]').evaluateAll((all) =>
      all
        .filter((element) => {
          const labels =
            element instanceof HTMLInputElement || element instanceof HTMLSelectElement ? element.labels : null;
          const text = element.getAttribute('aria-label') ?? labels?.[0]?.textContent ?? element.textContent;
          return text.trim() === '';
        })
        .map((element) => element.outerHTML.slice(0, 200)),
    );
    expect(nameless).toEqual([]);
  });

  test('on paper what is open is there, and the tools are not', async () => {
    await open();
    await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
    expect(await page.locator('form').isVisible()).toBe(false);
    expect(await page.locator('.check.fail').first().isVisible()).toBe(true);
    expect(await page.locator('body').evaluate((body) => getComputedStyle(body).backgroundColor)).toBe(
      'rgb(255, 255, 255)',
    );
  });

  test('a narrow dark window has no sideways scrolling', async () => {
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.setViewportSize({ width: 700, height: 900 });
    await open();
    await page.getByRole('button', { name: /^open all/ }).click();
    await page.locator('canvas').first().waitFor();
    const wide = await page.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth');
    expect(wide).toBeLessThanOrEqual(0);
  });
});
