/**
 * The PRI queue: page requests of devices on their way to software (IHI 0070 3.13, 8).
 *
 * A request that finds no room is dropped; a group whose last request was dropped is answered by the SMMU itself, with
 * success where the queue overflowed (the device asks again) and with failure where there is no queue.
 */
import type { NodeRuntime } from '../../runtime/node-runtime.js';
import { CR0, PRIQ_BASE, PRIQ_CONS, PRIQ_PROD } from '../../uapi/smmuv3-registers.js';
import type { GroupResponsePort, PageRequestMessage } from './ats.js';
import type { SmmuMemory } from './ports.js';
import { PRIQ_ENTRY } from './records.js';
import type { RegisterFile } from './register-file.js';

/** What the queue is built into. */
export interface PageRequestPlacement {
  readonly runtime: NodeRuntime;
  readonly memory: SmmuMemory;
  readonly registers: RegisterFile;
  readonly name: string;
  readonly maxLog2: number;
  readonly respond: GroupResponsePort;
}

/** Writes page requests where PRIQ_BASE says. */
export class PageRequestQueue {
  readonly #placement: PageRequestPlacement;

  constructor(placement: PageRequestPlacement) {
    this.#placement = placement;
  }

  /** A device's request. */
  report(message: PageRequestMessage): void {
    const { registers, respond, runtime, name } = this.#placement;
    const { streamId, substreamId, group } = message;
    // A Stop Marker ends a PASID's requests and expects no answer (PCIe 10.4.1.2.1).
    const isStopMarker = substreamId !== undefined && !message.read && !message.write;
    const isLast = message.isLast && !isStopMarker;
    const isOpen = registers.field(CR0, 'PRIQEN') !== 0 && !registers.isErrorActive('PRIQ_ABT_ERR');
    if (!isOpen) {
      if (isLast) respond(streamId, substreamId, group, 'failure');
      return;
    }
    const log2Size = Math.min(registers.field(PRIQ_BASE, 'LOG2SIZE'), this.#placement.maxLog2);
    const wrap = 2 ** log2Size;
    const mask = 2 * wrap - 1;
    const write = registers.field(PRIQ_PROD, 'WR') & mask;
    const read = registers.field(PRIQ_CONS, 'RD') & mask;
    const isOverflowing = registers.field(PRIQ_PROD, 'OVFLG') !== registers.field(PRIQ_CONS, 'OVACKFLG');
    if (isOverflowing || write === (read ^ wrap)) {
      if (!isOverflowing) {
        registers.setField(PRIQ_PROD, 'OVFLG', 1 - registers.field(PRIQ_PROD, 'OVFLG'));
        runtime.emit('smmu.priq-overflow', { smmu: name });
        registers.interrupt('priq');
      }
      if (isLast) respond(streamId, substreamId, group, 'success');
      return;
    }
    if (!this.#write(message, log2Size, write)) {
      registers.raiseError('PRIQ_ABT_ERR');
      respond(streamId, substreamId, group, 'failure');
      return;
    }
    registers.setField(PRIQ_PROD, 'WR', (write + 1) & mask);
    if (write === read || isLast) registers.interrupt('priq');
  }

  /** False: no memory there. */
  #write(message: PageRequestMessage, log2Size: number, index: number): boolean {
    const { registers, memory } = this.#placement;
    const record = PRIQ_ENTRY.make({
      StreamID: message.streamId,
      SSV: Number(message.substreamId !== undefined),
      SubstreamID: message.substreamId ?? 0,
      R: Number(message.read),
      W: Number(message.write),
      X: Number(message.execute ?? false),
      P: Number(message.privileged ?? false),
      Last: Number(message.isLast),
      PRGIndex: message.group,
      Address: Number(message.address >> 12n),
    });
    const base = registers.queueAddress(PRIQ_BASE, log2Size, PRIQ_ENTRY.sizeBytes);
    const address = base + (index % 2 ** log2Size) * PRIQ_ENTRY.sizeBytes;
    for (let word = 0; word < record.length; word += 2)
      if (!memory.store64(address + word * 4, record[word] ?? 0, record[word + 1] ?? 0)) return false;
    return true;
  }
}
