/**
 * Firmware's share of PCI: addresses for BARs and windows for bridges, from a host bridge's windows downwards.
 *
 * Every function that is described gets its addresses before the kernel starts, also one whose slot is empty yet: a card that is
 * plugged later finds room. Given addresses and windows are kept. A bridge gets a window as large as the BARs below it need, at
 * least 2 MiB where it has a slot; above 4 GiB that is the prefetchable window, the only one with 64 bits (PCIe 7.5.1.3).
 */
import { UnbuildableError, type AddressRange, type HostBridgeDescription } from '../description.js';
import type { Fabric } from './fabric.js';
import type { AddressSpan, Bar, PciFunction } from './function.js';

const BRIDGE_GRANULE = 2 ** 20;
const SLOT_ROOM = 2 * BRIDGE_GRANULE;

/** Room in some windows, handed out upwards. */
class Pool {
  readonly #spans: { next: number; readonly last: number }[];

  constructor(spans: readonly AddressSpan[]) {
    this.#spans = spans.map(({ start, last }) => ({ next: start, last }));
  }

  /** First address that fits; undefined when nothing does. */
  alloc(sizeBytes: number, alignBytes: number, is64: boolean): number | undefined {
    for (const span of this.#spans) {
      const start = Math.ceil(span.next / alignBytes) * alignBytes;
      const end = start + sizeBytes;
      if (end - 1 > span.last || (!is64 && end > 2 ** 32)) continue;
      span.next = end;
      return start;
    }
    return undefined;
  }
}

function spanOf(range: AddressRange): AddressSpan {
  return { start: Number(range.start), last: Number(range.last) };
}

/** Assigns everything below one host bridge. @throws UnbuildableError when a BAR or a bridge finds no room */
export function assignResources(description: HostBridgeDescription, fabric: Fabric): void {
  new Assignment(description, fabric).run();
}

class Assignment {
  readonly #description: HostBridgeDescription;
  readonly #fabric: Fabric;

  constructor(description: HostBridgeDescription, fabric: Fabric) {
    this.#description = description;
    this.#fabric = fabric;
  }

  run(): void {
    const root = new Pool(this.#description.windows.map(spanOf));
    this.#assignBus(
      this.#fabric.functions.filter((fn) => this.#fabric.parentOf(fn) === undefined),
      root,
    );
  }

  #assignBus(functions: readonly PciFunction[], pool: Pool): void {
    for (const fn of functions) {
      for (const bar of fn.bars) {
        const given = fn.description.bars?.find((b) => b.index === bar.index)?.start;
        this.#assignBar(fn, bar, given === undefined ? this.#room(fn, bar, pool) : Number(given));
      }
      if (fn.isBridge) this.#assignBridge(fn, pool);
    }
  }

  #room(fn: PciFunction, bar: Bar, pool: Pool): number {
    const start = pool.alloc(bar.sizeBytes, bar.sizeBytes, bar.is64);
    if (start === undefined)
      throw new UnbuildableError(`${fn.bdf}: no window of ${this.#description.name} has room for BAR ${bar.index}`);
    return start;
  }

  #assignBridge(bridge: PciFunction, pool: Pool): void {
    const below = this.#fabric.functions.filter((fn) => this.#fabric.parentOf(fn) === bridge);
    if (bridge.description.config === undefined) this.#openWindows(bridge, pool);
    bridge.enableForwarding();
    this.#assignBus(below, new Pool(bridge.windows));
  }

  #openWindows(bridge: PciFunction, pool: Pool): void {
    const { memory, prefetchable } = bridge.description.bridge ?? {};
    if (memory !== undefined || prefetchable !== undefined) {
      bridge.setWindows(memory && spanOf(memory), prefetchable && spanOf(prefetchable));
      return;
    }
    const need = this.#needBytes(bridge);
    if (need === 0) return;
    const start = pool.alloc(need, BRIDGE_GRANULE, true);
    if (start === undefined)
      throw new UnbuildableError(
        `${bridge.bdf}: no window of ${this.#description.name} has room for ${need} bytes below it`,
      );
    const span = { start, last: start + need - 1 };
    if (span.last < 2 ** 32) bridge.setWindows(span, undefined);
    else bridge.setWindows(undefined, span);
  }

  /** Bytes of the window a bridge needs: BARs below, each aligned to its size, and windows of bridges below. */
  #needBytes(bridge: PciFunction): number {
    let bytes = 0;
    for (const fn of this.#fabric.functions) {
      if (this.#fabric.parentOf(fn) !== bridge) continue;
      for (const bar of fn.bars) bytes = Math.ceil(bytes / bar.sizeBytes) * bar.sizeBytes + bar.sizeBytes;
      if (fn.isBridge) bytes = Math.ceil(bytes / BRIDGE_GRANULE) * BRIDGE_GRANULE + this.#needBytes(fn);
    }
    const room = bridge.description.slot === undefined ? 0 : SLOT_ROOM;
    return Math.max(room, Math.ceil(bytes / BRIDGE_GRANULE) * BRIDGE_GRANULE);
  }

  #assignBar(fn: PciFunction, bar: Bar, busAddress: number): void {
    const window = this.#description.windows.find((w) => busAddress >= Number(w.start) && busAddress <= Number(w.last));
    const cpuAddress = window === undefined ? busAddress : Number(window.cpuStart) + busAddress - Number(window.start);
    fn.assignBar(bar, busAddress, cpuAddress);
  }
}
