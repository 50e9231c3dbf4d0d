/**
 * The bus analyser: every transaction of every device, and where each piece of it ended.
 *
 * This is what lets a run tell *refused* from *silent*: it is taken on the wires, not from what the kernel believes. Pieces
 * that end side by side in the same place are joined.
 */
import type { NodeRuntime } from '../runtime/node-runtime.js';

/** Where one piece of a device's transaction ended. `address` is what was decoded there (a physical or bus address). */
export interface TransactionEnd {
  readonly kind: 'memory' | 'peer' | 'doorbell' | 'aborted' | 'nowhere';
  readonly iova: bigint;
  readonly lengthBytes: number;
  readonly address?: bigint;
  /** `0000:03:00.0 BAR 2`, `its@c6000000`, the name of the SMMU event, ... */
  readonly where: string;
  /** The component that sent it there: `switch port 0000:02:00.0`, `root complex pci0000:00`, the SMMU, the system bus. */
  readonly hop: string;
}

/** One transaction. */
export interface TransactionRecord {
  readonly number: number;
  readonly timeNs: number;
  readonly device: string;
  readonly direction: 'read' | 'write' | 'msi';
  readonly iova: bigint;
  readonly lengthBytes: number;
  readonly ends: readonly TransactionEnd[];
}

function isContinuation(last: TransactionEnd, next: TransactionEnd): boolean {
  const length = BigInt(last.lengthBytes);
  const isAddressNext =
    last.address === undefined ? next.address === undefined : next.address === last.address + length;
  return (
    last.kind === next.kind &&
    last.where === next.where &&
    last.hop === next.hop &&
    next.iova === last.iova + length &&
    isAddressNext
  );
}

/** The transactions of one board, oldest first. */
export class BusAnalyser {
  readonly #runtime: NodeRuntime;
  readonly #records: TransactionRecord[] = [];

  constructor(runtime: NodeRuntime) {
    this.#runtime = runtime;
  }

  get records(): readonly TransactionRecord[] {
    return this.#records;
  }

  record(transaction: Omit<TransactionRecord, 'number' | 'timeNs'>): void {
    const ends: TransactionEnd[] = [];
    for (const end of transaction.ends) {
      const last = ends.at(-1);
      if (last !== undefined && isContinuation(last, end))
        ends[ends.length - 1] = { ...last, lengthBytes: last.lengthBytes + end.lengthBytes };
      else ends.push(end);
    }
    const { device, direction, iova, lengthBytes } = transaction;
    const [number, timeNs] = [this.#records.length, this.#runtime.now];
    this.#records.push({ number, timeNs, device, direction, iova, lengthBytes, ends });
    const ended = ends
      .map(
        (end) =>
          `${end.kind}:${end.where}|${end.hop}${end.address === undefined ? '' : `@0x${end.address.toString(16)}`}`,
      )
      .join('+');
    this.#runtime.emit('dma', { device, direction, iova, length: lengthBytes, ended });
  }
}
