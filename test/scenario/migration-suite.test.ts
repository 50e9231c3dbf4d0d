import { shippedScenarios } from './shipped.js';

shippedScenarios('scenarios/migration', (file) => !file.includes('devices/'));
