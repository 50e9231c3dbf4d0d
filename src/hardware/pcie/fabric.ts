/**
 * The fabric below a host bridge: where a memory request from a function goes before any IOMMU sees it.
 *
 * A request climbs from its function through bridges to the root complex. At every level somebody else may claim its address:
 * a sibling function, another port's window. That happens by address decoding alone, so a request that the kernel meant for
 * memory can end in a peer's BAR. ACS controls of the port it came in by decide whether it is sent upstream instead. What
 * reaches the root complex meets its abort ranges, its own windows and its inbound windows (`dma-ranges`), and only then
 * leaves for the IOMMU, under the requester ID that the last bridge gave it.
 *
 * Decoding uses the registers as they are: a window or BAR that software moves, or switches off, routes differently at once.
 * A decision holds for a run of addresses; its `last` says how far, so that a transfer can be cut where decoding changes.
 *
 * A port forwards a request into its own window only with Upstream Forwarding, be it redirected from below or straight from a device:
 * it cannot tell. Simplification: routing does not take time.
 *
 * Source: PCIe 5.0 1.3, 2.2.4, 6.12 (ACS), 7.5.1.3; PCI Express to PCI/PCI-X Bridge 1.0 2.3; domain.md A4.30-A4.39.
 */
import { PCI_ACS, PCI_ACS_EGRESS_CTL_V, PCI_EXP_TYPE, PCI_EXT_CAP_ID_ACS } from '../../uapi/pci-regs.js';
import type { HostBridgeDescription } from '../description.js';
import type { AddressSpan, Bar, PciFunction } from './function.js';

/** Address type of a request (PCIe 10.2.1). A translation request is for the root complex, whoever else may claim its address. */
export type AddressType = 'untranslated' | 'translated' | 'translation-request';

/** A memory request as it leaves its function. */
export interface Request {
  readonly from: PciFunction;
  readonly address: number;
  readonly addressType: AddressType;
}

/** Where a request leaves the fabric. `last` is the last address for which the same decision holds. */
export type Route =
  | {
      /** To the IOMMU: `address` is what comes out of the root complex. */
      readonly kind: 'upstream';
      readonly requesterId: number;
      readonly address: number;
      readonly last: number;
    }
  | {
      /** Swallowed by a doorbell inside the root complex. */
      readonly kind: 'doorbell';
      readonly name: string;
      readonly requesterId: number;
      readonly last: number;
    }
  | {
      readonly kind: 'peer';
      readonly target: PciFunction;
      readonly bar: Bar;
      readonly offset: number;
      /** The component that sent it sideways. */
      readonly hop: string;
      readonly last: number;
    }
  | {
      /** `nowhere`: nobody claims it, or it cannot leave the root complex; `aborted`: refused with an error that is logged. */
      readonly kind: 'nowhere' | 'aborted';
      readonly why: string;
      readonly hop: string;
      readonly last: number;
    };

/** A doorbell's frame inside the root complex. */
export interface Capture extends AddressSpan {
  readonly name: string;
}

const TOP = 2 ** 53 - 1;

/** Something on a bus that claims an address. */
type Claim = { readonly fn: PciFunction; readonly bar: Bar } | { readonly fn: PciFunction; readonly bar: undefined };

/** How far decisions hold: the address before the next edge of any range looked at. */
class Reach {
  last = TOP;
  readonly #address: number;

  constructor(address: number) {
    this.#address = address;
  }

  /** Whether the address lies in a range; notes its edges. */
  covers(span: AddressSpan): boolean {
    if (span.start > this.#address) this.last = Math.min(this.last, span.start - 1);
    else if (span.last >= this.#address) this.last = Math.min(this.last, span.last);
    return span.start <= this.#address && this.#address <= span.last;
  }
}

/** The functions below one host bridge. */
export class Fabric {
  readonly functions: PciFunction[] = [];
  readonly #description: HostBridgeDescription;
  readonly #captures: readonly Capture[];

  constructor(description: HostBridgeDescription, captures: readonly Capture[] = []) {
    this.#description = description;
    this.#captures = captures;
  }

  /** The bridge right above a function, of a virtual one the physical function's; undefined on the root bus, and on buses that no bridge leads to. */
  parentOf(fn: PciFunction): PciFunction | undefined {
    const { bus } = fn.physicalFunction ?? fn;
    return this.functions.find((bridge) => bridge.isBridge && bridge.secondaryBus === bus && bridge !== fn);
  }

  /** Whether a function sits below a bridge, however deep. */
  isBelow(fn: PciFunction, bridge: PciFunction): boolean {
    for (let port = this.parentOf(fn); port !== undefined; port = this.parentOf(port)) if (port === bridge) return true;
    return false;
  }

  /** Where a request ends, or that it goes on to the IOMMU. */
  route(request: Request): Route {
    const { from, address } = request;
    const reach = new Reach(address);
    if (request.addressType === 'translation-request') return this.#toTranslationAgent(request, reach);
    const internal = this.#internalPeer(request, reach);
    if (internal !== undefined) return internal;
    let requesterId = from.requesterId;
    let isHairpin = false;
    let below = from;
    for (let port = this.parentOf(from); port !== undefined; port = this.parentOf(port)) {
      const sideways = this.#sideways(request, below, port, reach);
      if (sideways === 'redirected') isHairpin = true;
      else if (sideways !== undefined) return sideways;
      const stop = ingress(request, requesterId, port, reach);
      if (stop !== undefined) return stop;
      const isOwn = port.windows.map((window) => reach.covers(window)).includes(true);
      if (isOwn) {
        const forwards = isPort(port) ? (port.acsControl & PCI_ACS.UF) !== 0 : isHairpin;
        const why = isPort(port) && isHairpin ? 'and upstream forwarding is off' : 'where nothing claims it';
        if (!forwards) return nowhere(`in a window of ${port.bdf}, ${why}`, hopOf(port), reach);
        isHairpin = true;
      }
      if (isConventionalBridge(port)) requesterId = aliasOf(port);
      below = port;
    }
    return this.#atRoot(request, below, requesterId, isHairpin, reach);
  }

  /** Straight up, under the ID that bridges give it; translation blocking stops it. */
  #toTranslationAgent(request: Request, reach: Reach): Route {
    let { requesterId } = request.from;
    for (let port = this.parentOf(request.from); port !== undefined; port = this.parentOf(port)) {
      const stop = ingress(request, requesterId, port, reach);
      if (stop !== undefined) return stop;
      if (isConventionalBridge(port)) requesterId = aliasOf(port);
    }
    return { kind: 'upstream', requesterId, address: request.address, last: reach.last };
  }

  /** Whether a CPU's access to a BAR gets there: every bridge above must forward the address. */
  isReachable(fn: PciFunction, bar: Bar): boolean {
    const start = fn.barAddress(bar);
    for (let port = this.parentOf(fn); port !== undefined; port = this.parentOf(port)) {
      const forwards = port.windows.some((w) => w.start <= start && start + bar.sizeBytes - 1 <= w.last);
      if (!port.isPresent || !forwards) return false;
    }
    return true;
  }

  // --- levels ---

  /** A multi-function device that decodes its siblings' BARs itself, unless ACS redirects. */
  #internalPeer(request: Request, reach: Reach): Route | undefined {
    const { from } = request;
    if (from.description.internalPeerToPeer !== true) return undefined;
    const siblings = this.functions.filter((fn) => fn !== from && isSameSlot(fn, from));
    const claim = this.#claim(siblings, request.address, reach);
    if (claim === undefined) return undefined;
    const way = peerWay(from, request, claim.fn.requesterId & 7);
    if (way === 'redirected') return undefined;
    if (way === 'blocked') return blocked(from, 'P2P egress control', reach);
    return this.#deliver(claim, request.address, `device ${from.bdf.slice(0, -2)}`, reach);
  }

  /** Whoever shares the bus of `below` and claims the address, unless ACS redirects it. `port` is the bridge above that bus. */
  #sideways(request: Request, below: PciFunction, port: PciFunction, reach: Reach): Route | 'redirected' | undefined {
    const isSwitch = port.expressType === PCI_EXP_TYPE.UPSTREAM;
    if (!isSwitch && !isConventionalBridge(port)) return undefined;
    const others = this.functions.filter((fn) => fn !== below && this.parentOf(fn) === port);
    const claim = this.#claim(others, request.address, reach);
    if (claim === undefined) return undefined;
    if (!isSwitch) return this.#deliver(claim, request.address, `conventional bus of ${port.bdf}`, reach);
    const way = peerWay(below, request, claim.fn.requesterId >> 3);
    if (way === 'redirected') return way;
    if (way === 'blocked') return blocked(below, 'P2P egress control', reach);
    return this.#deliver(claim, request.address, hopOf(below), reach);
  }

  /** The root complex. */
  #atRoot(request: Request, below: PciFunction, requesterId: number, isHairpin: boolean, reach: Reach): Route {
    const host = this.#description;
    const name = `root complex ${host.name}`;
    const { address } = request;
    for (const capture of this.#captures) {
      if (reach.covers(capture)) return { kind: 'doorbell', name: capture.name, requesterId, last: reach.last };
    }
    for (const range of host.abortRanges ?? []) {
      if (reach.covers(spanOf(range))) return nowhere('the root complex aborts this range', name, reach);
    }
    if (host.peerToPeer !== false) {
      const others = this.functions.filter((fn) => fn !== below && this.parentOf(fn) === undefined);
      const claim = this.#claim(others, address, reach);
      const window = host.windows.find((w) => reach.covers(spanOf(w)));
      const way = isHairpin ? 'redirected' : peerWay(below, request, claim && claim.fn.requesterId >> 3);
      if (way === 'blocked') return blocked(below, 'P2P egress control', reach);
      if (way === 'direct') {
        if (claim !== undefined) return this.#deliver(claim, address, name, reach);
        const text = `in the host bridge's window 0x${window?.start.toString(16) ?? ''}-0x${window?.last.toString(16) ?? ''}, where nothing claims it`;
        if (window !== undefined) return nowhere(text, name, reach);
      }
    }
    if (host.inbound === undefined) return { kind: 'upstream', requesterId, address, last: reach.last };
    const inbound = host.inbound.find((w) => reach.covers(spanOf(w)));
    if (inbound === undefined) return nowhere('outside dma-ranges', name, reach);
    const out = Number(inbound.cpuStart) + address - Number(inbound.start);
    return { kind: 'upstream', requesterId, address: out, last: reach.last };
  }

  // --- decoding ---

  /** Who among functions claims an address: by a BAR, or as a bridge by a window. */
  #claim(candidates: readonly PciFunction[], address: number, reach: Reach): Claim | undefined {
    let found: Claim | undefined;
    for (const fn of candidates) {
      if (!fn.decodesMemory) continue;
      for (const bar of fn.bars) {
        const start = fn.barAddress(bar);
        if (reach.covers({ start, last: start + bar.sizeBytes - 1 })) found ??= { fn, bar };
      }
      for (const window of fn.windows) if (reach.covers(window)) found ??= { fn, bar: undefined };
    }
    return found;
  }

  /** Down from a claimer to the BAR that answers. */
  #deliver(claim: Claim, address: number, hop: string, reach: Reach): Route {
    if (claim.bar !== undefined) {
      const { fn: target, bar } = claim;
      return { kind: 'peer', target, bar, offset: address - target.barAddress(bar), hop, last: reach.last };
    }
    const below = this.functions.filter((fn) => this.parentOf(fn) === claim.fn);
    const next = this.#claim(below, address, reach);
    if (next !== undefined) return this.#deliver(next, address, hop, reach);
    return nowhere(`in the window of ${claim.fn.bdf}, where nothing claims it`, hop, reach);
  }
}

/** What the port above checks before it takes a request upstream. */
function ingress(request: Request, requesterId: number, port: PciFunction, reach: Reach): Route | undefined {
  if (!port.isBusMaster)
    return { kind: 'aborted', why: `bus mastering of ${port.bdf} is off`, hop: hopOf(port), last: reach.last };
  const control = isPort(port) ? port.acsControl : 0;
  const bus = requesterId >> 8;
  if ((control & PCI_ACS.SV) !== 0 && (bus < port.secondaryBus || bus > port.subordinateBus))
    return blocked(port, 'source validation', reach);
  if ((control & PCI_ACS.TB) !== 0 && request.addressType !== 'untranslated')
    return blocked(port, 'translation blocking', reach);
  return undefined;
}

function nowhere(why: string, hop: string, reach: Reach): Route {
  return { kind: 'nowhere', why, hop, last: reach.last };
}

function blocked(port: PciFunction, control: string, reach: Reach): Route {
  return { kind: 'aborted', why: `ACS violation at ${port.bdf}: ${control}`, hop: hopOf(port), last: reach.last };
}

function spanOf(range: { readonly start: bigint; readonly last: bigint }): AddressSpan {
  return { start: Number(range.start), last: Number(range.last) };
}

function isSameSlot(a: PciFunction, b: PciFunction): boolean {
  return a.requesterId >> 3 === b.requesterId >> 3;
}

/** A port that ACS Source Validation and redirection apply to. */
function isPort(fn: PciFunction): boolean {
  return fn.expressType === PCI_EXP_TYPE.ROOT_PORT || fn.expressType === PCI_EXP_TYPE.DOWNSTREAM;
}

function isConventionalBridge(fn: PciFunction): boolean {
  return fn.isBridge && (fn.expressType === undefined || fn.expressType === PCI_EXP_TYPE.PCI_BRIDGE);
}

/** Requester ID of what a conventional bridge forwards: a PCIe-to-PCI bridge takes its secondary bus, others are not told apart. */
function aliasOf(bridge: PciFunction): number {
  return bridge.expressType === PCI_EXP_TYPE.PCI_BRIDGE ? bridge.secondaryBus << 8 : bridge.requesterId;
}

/**
 * What a function's ACS says about a request to a peer (PCIe 5.0 6.12.3, table 6-11): with both P2P Request Redirect and P2P Egress
 * Control only what the egress vector names is redirected, with Egress Control alone that is an error. Direct Translated P2P lets
 * translated requests past redirection. `target` is a function's number or a port's device number; undefined when nobody claims the address.
 */
function peerWay(fn: PciFunction, request: Request, target: number | undefined): 'direct' | 'redirected' | 'blocked' {
  const control = fn.acsControl;
  const isPassing = request.addressType === 'translated' && (control & PCI_ACS.DT) !== 0;
  const redirects = (control & PCI_ACS.RR) !== 0 && !isPassing;
  if ((control & PCI_ACS.EC) === 0) return redirects ? 'redirected' : 'direct';
  const vector = fn.configRead(fn.findExtendedCapability(PCI_EXT_CAP_ID_ACS) + PCI_ACS_EGRESS_CTL_V, 4);
  const isNamed = target !== undefined && ((vector >>> (target & 31)) & 1) !== 0;
  if (!isNamed) return 'direct';
  return redirects ? 'redirected' : 'blocked';
}

/** What a component is called in reports. */
export function hopOf(fn: PciFunction): string {
  switch (fn.expressType) {
    case PCI_EXP_TYPE.ROOT_PORT:
      return `root port ${fn.bdf}`;
    case PCI_EXP_TYPE.UPSTREAM:
    case PCI_EXP_TYPE.DOWNSTREAM:
      return `switch port ${fn.bdf}`;
    default:
      return fn.isBridge ? `bridge ${fn.bdf}` : fn.bdf;
  }
}
