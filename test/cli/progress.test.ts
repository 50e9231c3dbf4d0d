/** Progress as a terminal or a pipe gets it. */
import { afterEach, expect, test, vi } from 'vitest';
import { LiveLine, type ProgressStream } from '../../src/cli/progress.js';

afterEach(() => vi.useRealTimers());

function shown(stream: Omit<ProgressStream, 'write'>, afterMs: number, texts: readonly string[]): string {
  vi.useFakeTimers({ toFake: ['performance'] });
  let written = '';
  const line = new LiveLine({ ...stream, write: (text) => (written += text) });
  for (const text of texts) {
    vi.advanceTimersByTime(afterMs);
    line.show(text);
  }
  return written;
}

test('a pipe is told of the first thing that comes after a while, and of nothing sooner', () => {
  expect(shown({}, 6000, ['1 run', '2 runs'])).toBe('1 run\n2 runs\n');
  expect(shown({}, 1000, ['1 run', '2 runs'])).toBe('');
});

test('a terminal that does not know its width gets the whole line', () => {
  expect(shown({ isTTY: true, columns: 0 }, 200, ['1 run'])).toBe('\r\u001b[K1 run');
});
