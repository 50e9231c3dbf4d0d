/** An address space of stress in this thread, nobody else running. */
import { AddressSpace } from '../../src/stress/address-space.js';
import { buildLayout } from '../../src/stress/build-layout.js';
import { DEFAULT_OPTIONS, type StressOptions } from '../../src/stress/options.js';
import { MAIN_THREAD } from '../../src/stress/spec.js';
import { StressThread } from '../../src/stress/thread.js';

/** One client, no devices, no pauses. */
export function newSpace(changes: Partial<StressOptions>): AddressSpace {
  const options: StressOptions = { ...DEFAULT_OPTIONS, threads: 1, devices: 0, pauses: false, ...changes };
  const { arena, layout } = buildLayout(options);
  const space = new AddressSpace(new StressThread({ options, layout, thread: MAIN_THREAD }, arena));
  space.attach();
  return space;
}
