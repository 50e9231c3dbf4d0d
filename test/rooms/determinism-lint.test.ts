/** The lint rule against wall clock and platform randomness really fires in every room that is part of a run. */
import { ESLint } from 'eslint';
import { expect, test } from 'vitest';

const OFFENCES = [
  'export const a = Math.random();',
  'export const b = Date.now();',
  'export const c = new Date();',
  'export const d = performance.now();',
  'export const e = setTimeout(() => undefined, 1);',
  "import { nanoid } from 'nanoid';\nexport const f = nanoid();",
  "import { performance as p } from 'node:perf_hooks';\nexport const g = p.now();",
  'export const h = crypto.getRandomValues(new Uint8Array(4));',
];

test.each(['runtime', 'checks', 'core', 'hardware', 'kernel', 'host', 'testbed', 'vmm', 'migration', 'scenario'])(
  'src/%s may not use the wall clock or platform randomness',
  async (room) => {
    const eslint = new ESLint({
      overrideConfig: { languageOptions: { parserOptions: { projectService: false } } },
      ruleFilter: ({ ruleId }) => ruleId.startsWith('no-restricted'),
    });
    for (const offence of OFFENCES) {
      const [result] = await eslint.lintText(offence, { filePath: `src/${room}/offence.ts` });
      expect(
        result?.messages.map((message) => message.ruleId),
        `${room}: ${offence}`,
      ).toContainEqual(expect.stringMatching(/^no-restricted/));
    }
  },
);
