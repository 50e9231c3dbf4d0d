import { shippedScenarios } from './shipped.js';

shippedScenarios(
  'scenarios',
  (file) => !file.startsWith('scenarios/migration/') && !file.startsWith('scenarios/hosts/'),
);
