import { expect, test } from 'vitest';
import { readdirSync } from 'node:fs';
import { readScenario } from '../../src/scenario/load.js';
import { shippedScenarios } from './shipped.js';

shippedScenarios('scenarios/migration/devices');
shippedScenarios('scenarios/migration/several-devices');

test('every scenario of the migration suite says what makes it fail', () => {
  const files = readdirSync('scenarios/migration', { recursive: true, encoding: 'utf8' }).filter((f) =>
    f.endsWith('.yaml'),
  );
  expect(files.length).toBeGreaterThanOrEqual(40);
  for (const file of files) expect(readScenario(`scenarios/migration/${file}`).failsWith, file).toBeDefined();
});
