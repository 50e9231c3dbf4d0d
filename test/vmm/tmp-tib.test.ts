import { test } from 'vitest';
import { migrate } from '../../src/migration/precopy.js';
import { run } from '../../src/testbed/run.js';
import { Guest } from '../../src/vmm/guest.js';
import { plugDevice } from '../../src/vmm/hotplug.js';
import { GIB, MIB } from '../../src/vmm/ranges.js';
import { ampereLike, x86Like } from '../fixtures/hosts.js';
test('tib', async () => {
  const memory = [{ start: 0x80000000n, last: 0xffffffffn }, { start: 0x8000000000n, last: 0xffffffffffn },{ start: 0x10000000000n, last: 0x3ffffffffffn }];
  const hosts = [ampereLike({ memory }), x86Like({ memory })];
  const t0 = performance.now();
  const lap = (what: string) => console.log(what, (performance.now() - t0).toFixed(0));
  const out = await run({ seed: 1, placement: 'inline', strategy: 'in-order', hosts, links: [{ between: ['ampere', 'x86'], bandwidthBitsPerSecond: 100e9, latencyNs: 50000 }],
    *main(lab) {
      lap('start');
      const guest = yield* Guest.boot(lab.host('ampere'), { name: 'vm', machine: 'qemu-virt', memoryBytes: 1024n * GIB, ...(process.env['WL'] ? { workload: { bytesPerSecond: 500e6, workingSetBytes: 1024n * MIB } } : {}) });
      lap('boot');
      if (process.env['PLUG']) { const r = yield* plugDevice(guest, { bdf: '0000:01:00.0' }); console.log(r.verdict, r.code); lap('plug'); }
      const r = yield* migrate(guest, { to: lab.host('x86'), attachedDevices: 'unplug-at-stop' });
      lap('migrate');
      console.log(r.outcome, r.reason, r.detail, r.statistics.rounds.length, r.statistics.downtimeNs, r.statistics.totalNs, r.memory);
    } });
  console.log(out.failure, out.rounds);
  lap('end');
}, 200000);
