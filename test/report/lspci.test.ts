import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { lspciText, type LspciFunction, type LspciResource } from '../../src/report/lspci.js';

interface SnapshotFunction {
  readonly config: string;
  readonly resource: string;
  readonly driver?: string;
  readonly iommu_group?: string;
}

const SNAPSHOTS = [
  'arm64-smmuv3-gicv2m-flat-6.12',
  'arm64-smmuv3-gicv3-flat-6.12',
  'arm64-smmuv3-gicv3-rootports-7.3',
  'arm64-viommu-gicv3-flat-6.12',
  'x86-amd-flat-6.12',
  'x86-intel-flat-7.3',
];

function snapshot(name: string): Record<string, SnapshotFunction> {
  const file = new URL(`../../scenarios/hosts/snapshots/${name}.json`, import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { pci: Record<string, SnapshotFunction> }).pci;
}

function resourcesOf(text: string): LspciResource[] {
  return text
    .trim()
    .split('\n')
    .map((line, index) => {
      const [start = 0n, last = 0n, flags = 0n] = line.split(' ').map(BigInt);
      return { index, start, last, flags };
    });
}

function recorded(name: string, bdf: string): LspciFunction {
  const fn = snapshot(name)[bdf];
  if (fn === undefined) throw new Error(`no ${bdf} in ${name}`);
  return {
    bdf,
    config: Uint8Array.from(Buffer.from(fn.config, 'hex')),
    resources: resourcesOf(fn.resource),
    ...(fn.driver === undefined ? {} : { driver: fn.driver }),
    ...(fn.iommu_group === undefined ? {} : { iommuGroup: Number(fn.iommu_group) }),
  };
}

/** Lines from the first that starts with `first` on, as many as `count`. */
function linesFrom(text: string, first: string, count: number): string[] {
  const lines = text.split('\n');
  const at = lines.findIndex((line) => line.startsWith(first));
  expect(at, `a line that starts with ${first}`).toBeGreaterThanOrEqual(0);
  return lines.slice(at, at + count);
}

/** A function of type 0 with a capability list at 40h, of `sizeBytes` bytes; bytes are written where they are named. */
function built(bytes: Readonly<Record<number, readonly number[]>>, sizeBytes = 4096): LspciFunction {
  const config = new Uint8Array(sizeBytes);
  config.set([0x34, 0x12, 0x78, 0x56, 0x06, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x02]);
  config[0x34] = 0x40;
  for (const [offset, values] of Object.entries(bytes)) config.set(values, Number(offset));
  return { bdf: '0000:00:03.0', config };
}

/** An Express capability that makes extended capabilities visible. */
const EXPRESS = [0x10, 0x00, 0x02, 0x00];

describe('a root port', () => {
  const text = lspciText(recorded('arm64-smmuv3-gicv3-rootports-7.3', '0000:00:02.0'));

  test('names, group, interrupt and driver', () => {
    expect(text.split('\n').slice(0, 8)).toEqual([
      '0000:00:02.0 PCI bridge [0604]: 1b36:000c (prog-if 00)',
      // From the subsystem capability at 40h: a bridge's header has no such IDs.
      '\tSubsystem: 1b36:0000',
      // Command 0407h, Status 0010h.
      '\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+',
      '\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-',
      '\tLatency: 0',
      // Bytes 3Ch, 3Dh: 14h, 01h.
      '\tInterrupt: pin A routed to IRQ 20',
      '\tIOMMU group: 1',
      '\tRegion 0: Memory at 10600000 (32-bit, non-prefetchable) [size=4K]',
    ]);
    expect(text.endsWith('\tKernel driver in use: pcieport\n')).toBe(true);
  });

  test('buses, windows and bridge control', () => {
    expect(linesFrom(text, '\tBus:', 7)).toEqual([
      '\tBus: primary=00, secondary=01, subordinate=01, sec-latency=0',
      // 1Ch: 10h, 10h.
      '\tI/O behind bridge: 1000-1fff [size=4K] [16-bit]',
      // 20h: 1000h, 1010h: base 1000_0000h, limit 101F_FFFFh.
      '\tMemory behind bridge: 10000000-101fffff [size=2M] [32-bit]',
      // 24h: 0001h, 0011h, type 1 is 64 bits; the upper halves at 28h and 2Ch are 80h.
      '\tPrefetchable memory behind bridge: 0000008000000000-00000080001fffff [size=2M] [64-bit]',
      '\tSecondary status: 66MHz- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- <SERR- <PERR-',
      // 3Eh: 0002h.
      '\tBridgeCtl: Parity- SERR+ NoISA- VGA- VGA16- MAbort- >Reset- FastB2B-',
      '\t\tPriDiscTmr- SecDiscTmr- DiscTmrStat- DiscTmrSERREn-',
    ]);
  });

  test('the Express capability of a port with a slot', () => {
    expect(linesFrom(text, '\tCapabilities: [54]', 22)).toEqual([
      // 56h: 0142h: version 2, type 4, slot implemented.
      '\tCapabilities: [54] Express (v2) Root Port (Slot+), IntMsgNum 0',
      // 58h: 0000_8020h.
      '\t\tDevCap:\tMaxPayload 128 bytes, PhantFunc 0',
      '\t\t\tExtTag+ RBE+',
      // 5Ch: 000Fh, 0000h.
      '\t\tDevCtl:\tCorrErr+ NonFatalErr+ FatalErr+ UnsupReq+',
      '\t\t\tRlxdOrd- ExtTag- PhantFunc- AuxPwr- NoSnoop-',
      '\t\t\tMaxPayload 128 bytes, MaxReadReq 128 bytes',
      '\t\tDevSta:\tCorrErr- NonFatalErr- FatalErr- UnsupReq- AuxPwr- TransPend-',
      // 60h: 0030_0604h: speed 4, width 32, L0s, active reporting, bandwidth notification.
      '\t\tLnkCap:\tPort #0, Speed 16GT/s, Width x32, ASPM L0s, Exit Latency L0s <64ns',
      '\t\t\tClockPM- Surprise- LLActRep+ BwNot+ ASPMOptComp-',
      '\t\tLnkCtl:\tASPM Disabled; RCB 64 bytes, Disabled- CommClk-',
      '\t\t\tExtSynch- ClockPM- AutWidDis- BWInt- AutBWInt-',
      // 66h: 2011h.
      '\t\tLnkSta:\tSpeed 2.5GT/s, Width x1',
      '\t\t\tTrErr- Train- SlotClk- DLActive+ BWMgmt- ABWMgmt-',
      // 68h: 000A_007Bh.
      '\t\tSltCap:\tAttnBtn+ PwrCtrl+ MRL- AttnInd+ PwrInd+ HotPlug+ Surprise+',
      '\t\t\tSlot #1, PowerLimit 0W; Interlock+ NoCompl-',
      // 6Ch: 03F1h: both indicators off (3), 6Eh: 0040h.
      '\t\tSltCtl:\tEnable: AttnBtn+ PwrFlt- MRL- PresDet- CmdCplt+ HPIrq+ LinkChg-',
      '\t\t\tControl: AttnInd Off, PwrInd Off, Power- Interlock-',
      '\t\tSltSta:\tStatus: AttnBtn- PowerFlt- MRL- CmdCplt- PresDet+ Interlock-',
      '\t\t\tChanged: MRL- PresDet- LinkState-',
      '\t\tRootCap: CRSVisible-',
      '\t\tRootCtl: ErrCorrectable- ErrNon-Fatal- ErrFatal- PMEIntEna- CRSVisible-',
      '\t\tRootSta: PME ReqID 0000, PMEStatus- PMEPending-',
    ]);
    // 78h: 0030_0020h: ARI forwarding, prefixes, of which 0 stands for 4.
    expect(text).toContain(' FRS- LN System CLS Not Supported, TPHComp- ExtTPHComp- ARIFwd+\n');
    expect(text).toContain(' ExtFmt+ EETLPPrefix+, MaxEETLPPrefixes 4\n');
    expect(text).toContain('OBFF Disabled, ARIFwd-\n');
    // 80h: 0000_001Eh.
    expect(text).toContain('\t\tLnkCap2: Supported Link Speeds: 2.5-16GT/s, Crosslink- Retimer- 2Retimers- DRS-\n');
  });

  test('MSI-X', () => {
    // 48h: 11h, 40h, 8000h; table and PBA in BAR 0 at 0 and 800h.
    expect(linesFrom(text, '\tCapabilities: [48]', 4)).toEqual([
      '\tCapabilities: [48] MSI-X: Enable+ Count=1 Masked-',
      '\t\tVector table: BAR=0 offset=00000000',
      '\t\tPBA: BAR=0 offset=00000800',
      '\tCapabilities: [40] Subsystem: 1b36:0000',
    ]);
  });

  test('error reporting with the root’s registers', () => {
    const lines = linesFrom(text, '\tCapabilities: [100 v2]', 15);
    expect(lines[0]).toBe('\tCapabilities: [100 v2] Advanced Error Reporting');
    // 10Ch: 0046_2030h.
    expect(lines[3]).toBe(
      '\t\tUESvrt:\tDLP+ SDES+ TLP- FCP+ CmpltTO- CmpltAbrt- UnxCmplt- RxOF+ MalfTLP+ ECRC- UnsupReq- ACSViol-',
    );
    // 118h: 0000_02A0h.
    expect(lines[6]).toBe('\t\tAERCap:\tFirst Error Pointer: 00, ECRCGenCap+ ECRCGenEn- ECRCChkCap+ ECRCChkEn-');
    expect(lines[7]).toBe('\t\t\tMultHdrRecCap+ MultHdrRecEn- TLPPfxPres- HdrLogCap-');
    // 12Ch: 7.
    expect(lines.slice(9, 11)).toEqual([
      '\t\tRootCmd: CERptEn+ NFERptEn+ FERptEn+',
      '\t\tRootSta: CERcvd- MultCERcvd- UERcvd- MultUERcvd-',
    ]);
  });

  test('access control services', () => {
    // 14Ch: capability 005Fh, control 001Dh.
    expect(linesFrom(text, '\tCapabilities: [148', 3)).toEqual([
      '\tCapabilities: [148 v1] Access Control Services',
      '\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans+',
      '\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-',
    ]);
  });
});

describe('functions of recorded hosts', () => {
  test('a physical function with SR-IOV', () => {
    const text = lspciText(recorded('arm64-smmuv3-gicv3-rootports-7.3', '0000:03:00.0'));
    expect(text.split('\n')[0]).toBe('0000:03:00.0 Ethernet controller [0200]: 8086:10c9 (rev 01)');
    expect(linesFrom(text, '\tRegion 0', 5)).toEqual([
      '\tRegion 0: Memory at 10400000 (32-bit, non-prefetchable) [size=128K]',
      '\tRegion 1: Memory at 10420000 (32-bit, non-prefetchable) [size=128K]',
      // Command 0406h: no I/O.
      '\tRegion 2: I/O ports at 3000 [disabled] [size=32]',
      '\tRegion 3: Memory at 10440000 (64-bit, non-prefetchable) [size=16K]',
      '\tCapabilities: [40] Power Management version 2',
    ]);
    expect(linesFrom(text, '\tCapabilities: [50]', 3)).toEqual([
      // 52h: 0180h.
      '\tCapabilities: [50] MSI: Enable- Count=1/1 Maskable+ 64bit+',
      '\t\tAddress: 0000000000000000  Data: 0000',
      '\t\tMasking: 00000000  Pending: 00000000',
    ]);
    expect(linesFrom(text, '\tCapabilities: [150', 14)).toEqual([
      '\tCapabilities: [150 v1] Alternative Routing-ID Interpretation (ARI)',
      '\t\tARICap:\tMFVC- ACS-, Next Function: 0',
      '\t\tARICtl:\tMFVC- ACS-, Function Group: 0',
      '\tCapabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)',
      '\t\tIOVCap:\tMigration- 10BitTagReq- IntMsgNum 0',
      // 168h: 0010h.
      '\t\tIOVCtl:\tEnable- Migration- Interrupt- MSE- ARIHierarchy+ 10BitTagReq-',
      '\t\tIOVSta:\tMigration-',
      // 16Ch: 8, 8, 0; 174h: 80h, 2; 17Ah: 10CAh; 17Ch: 553h, 1.
      '\t\tInitial VFs: 8, Total VFs: 8, Number of VFs: 0, Function Dependency Link: 00',
      '\t\tVF offset: 128, stride: 2, Device ID: 10ca',
      '\t\tSupported Page Size: 00000553, System Page Size: 00000001',
      // 184h: 0040_000Ch, 80h; 190h: 0042_000Ch, 80h.
      '\t\tRegion 0: Memory at 0000008000400000 (64-bit, prefetchable)',
      '\t\tRegion 3: Memory at 0000008000420000 (64-bit, prefetchable)',
      '\t\tVF Migration: offset: 00000000, BIR: 0',
      '\tKernel driver in use: igb',
    ]);
  });

  test('a virtio function: structures, a ROM that only the kernel has placed', () => {
    const text = lspciText(recorded('arm64-smmuv3-gicv3-rootports-7.3', '0000:01:00.0'));
    expect(linesFrom(text, '\tRegion', 3)).toEqual([
      '\tRegion 1: Memory at 10040000 (32-bit, non-prefetchable) [size=4K]',
      '\tRegion 4: Memory at 8000000000 (64-bit, prefetchable) [size=16K]',
      '\tExpansion ROM at 10000000 [virtual] [disabled] [size=256K]',
    ]);
    // B4h: type 2 in BAR 4 at 3000h, 1000h bytes, multiplier 4.
    expect(linesFrom(text, '\tCapabilities: [b4]', 2)).toEqual([
      '\tCapabilities: [b4] Vendor Specific Information: VirtIO: Notify',
      '\t\tBAR=4 offset=00003000 size=00001000 multiplier=00000004',
    ]);
    expect(linesFrom(text, '\tCapabilities: [7c]', 3)).toEqual([
      '\tCapabilities: [7c] Power Management version 3',
      '\t\tFlags: PMEClk- DSI- D1- D2- AuxCurrent=0mA PME(D0-,D1-,D2-,D3hot-,D3cold-)',
      '\t\tStatus: D0 NoSoftRst- PME-Enable- DSel=0 DScale=0 PME-',
    ]);
    // 44h: 1000_8020h: function level reset.
    expect(text).toContain('\t\t\tExtTag+ AttnBtn- AttnInd- PwrInd- RBE+ FLReset+ SlotPowerLimit 0W\n');
    expect(text).toContain('\t\t\tRlxdOrd- ExtTag- PhantFunc- AuxPwr- NoSnoop- FLReset-\n');
  });

  test('a class with a programming interface', () => {
    const text = lspciText(recorded('arm64-smmuv3-gicv3-rootports-7.3', '0000:02:00.0'));
    expect(text.split('\n')[0]).toBe(
      '0000:02:00.0 Non-Volatile memory controller [0108]: 1b36:0010 (rev 02) (prog-if 02)',
    );
    expect(text).toContain('MSI-X: Enable+ Count=65 Masked-\n\t\tVector table: BAR=0 offset=00002000\n');
  });

  test('a serial number', () => {
    const text = lspciText(recorded('x86-intel-flat-7.3', '0000:00:05.0'));
    // 144h: 57 34 12 ff, ff 00 54 52.
    expect(text).toContain('\tCapabilities: [140 v1] Device Serial Number 52-54-00-ff-ff-12-34-57\n');
  });

  test.each(SNAPSHOTS)('%s: every list is whole', (name) => {
    for (const bdf of Object.keys(snapshot(name))) {
      const text = lspciText(recorded(name, bdf));
      expect(text).not.toMatch(/!!!|<chain|<access denied>|Capability ID|undefined|NaN/);
      expect(text.startsWith(`${bdf} `)).toBe(true);
    }
  });
});

describe('regions', () => {
  const memory = { index: 0, start: 0x9000_0000n, last: 0x90ff_ffffn, flags: 0x14_220cn };

  test('without resources, addresses come from the BARs and sizes are unknown', () => {
    const fn = built({ 0x10: [0x0c, 0, 0, 0x90, 0x12, 0, 0, 0, 0x08, 0, 0, 0xa0, 0x01, 0xc0, 0, 0], 0x06: [0] });
    expect(linesFrom(lspciText(fn), '\tRegion', 3)).toEqual([
      '\tRegion 0: Memory at 1290000000 (64-bit, prefetchable)',
      '\tRegion 2: Memory at a0000000 (32-bit, prefetchable)',
      '\tRegion 3: I/O ports at c000 [disabled]',
    ]);
  });

  test('a virtual function’s BARs read as zero', () => {
    const fn = { ...built({ 0x06: [0] }), resources: [memory] };
    expect(lspciText(fn)).toContain('\tRegion 0: Memory at 90000000 (64-bit, prefetchable) [virtual] [size=16M]\n');
  });

  test('unassigned, ignored, disabled, broken', () => {
    const unassigned = { ...memory, start: 0n, last: 0xff_ffffn, flags: 0x200n };
    const empty = built({ 0x06: [0] });
    expect(lspciText({ ...empty, resources: [unassigned] })).toContain(
      '\tRegion 0: Memory at <unassigned> (32-bit, non-prefetchable) [size=16M]\n',
    );
    const placed = built({ 0x04: [0, 0, 0], 0x10: [0, 0, 0, 0x80] });
    expect(lspciText({ ...placed, resources: [unassigned] })).toContain(
      '\tRegion 0: Memory at <ignored> (32-bit, non-prefetchable) [disabled] [size=16M]\n',
    );
    expect(lspciText(built({ 0x06: [0], 0x24: [0x04, 0, 0, 0x80] }))).toContain(
      '\tRegion 5: Memory at <broken-64-bit-slot> (64-bit, non-prefetchable)\n',
    );
  });

  test('an expansion ROM', () => {
    const rom = built({ 0x06: [0], 0x30: [0x01, 0, 0, 0xfe] });
    expect(lspciText(rom)).toContain('\tExpansion ROM at fe000000\n');
    const disabled = built({ 0x04: [0], 0x06: [0], 0x30: [0x01, 0, 0, 0xfe] });
    expect(lspciText(disabled)).toContain('\tExpansion ROM at fe000000 [disabled by cmd]\n');
  });
});

describe('windows of a bridge', () => {
  const bridge = (bytes: Readonly<Record<number, readonly number[]>>): LspciFunction =>
    built({ 0x06: [0], 0x0a: [0x04, 0x06, 0, 0, 0x01], ...bytes });

  test('are disabled when the base is above the limit', () => {
    const closed = bridge({
      0x1c: [0xf0, 0x00],
      0x20: [0xf0, 0xff, 0, 0, 0xf1, 0xff, 0x01, 0, 0xff, 0xff, 0xff, 0xff],
    });
    expect(linesFrom(lspciText(closed), '\tI/O behind', 3)).toEqual([
      '\tI/O behind bridge: f000-0fff [disabled] [16-bit]',
      '\tMemory behind bridge: fff00000-000fffff [disabled] [32-bit]',
      '\tPrefetchable memory behind bridge: fffffffffff00000-00000000000fffff [disabled] [64-bit]',
    ]);
  });

  test('are wide with a type of 1, and unknown when base and limit differ in type', () => {
    // I/O 1_C000h to 1_CFFFh, memory 9000_0000h to 9D7F_FFFFh.
    const wide = bridge({
      0x1c: [0xc1, 0xc1],
      0x30: [1, 0, 1, 0],
      0x20: [0x00, 0x90, 0x70, 0x9d, 0x01, 0x80, 0x10, 0x80],
    });
    expect(linesFrom(lspciText(wide), '\tI/O behind', 3)).toEqual([
      '\tI/O behind bridge: 0001c000-0001cfff [size=4K] [32-bit]',
      '\tMemory behind bridge: 90000000-9d7fffff [size=216M] [32-bit]',
      '\t!!! Unknown prefetchable memory range types 8001/8010',
    ]);
  });

  test.each([
    ['7', 7],
    ['13, behind the BARs of virtual functions', 13],
  ])('are the kernel’s where it has any, from resource %s on', (_, first) => {
    const fn = bridge({ 0x1c: [0x10, 0x10], 0x20: [0x00, 0x90, 0x00, 0x90] });
    const window = { index: first + 1, start: 0xa000_0000n, last: 0xa01f_ffffn, flags: 0x200n };
    const absent = { start: 0n, last: 0n, flags: 0n };
    const resources = [{ index: first, ...absent }, window, { index: first + 2, ...absent }];
    expect(linesFrom(lspciText({ ...fn, resources }), '\tI/O behind', 2)).toEqual([
      '\tI/O behind bridge: 1000-1fff [disabled] [16-bit]',
      '\tMemory behind bridge: a0000000-a01fffff [size=2M] [32-bit]',
    ]);
  });
});

describe('capabilities', () => {
  test('address translation, page requests, PASID', () => {
    const text = lspciText(
      built({
        0x40: EXPRESS,
        // ATS: queue depth 16, enabled, STU 1.
        0x100: [0x0f, 0, 0x01, 0x11, 0x30, 0x00, 0x01, 0x80],
        // PRI: enabled, stopped, PASID required; 512 outstanding, 32 allowed.
        0x110: [0x13, 0, 0x01, 0x12, 0x01, 0x00, 0x00, 0x81, 0x00, 0x02, 0, 0, 0x20, 0, 0, 0],
        // PASID: 20 bits, Exec and Priv; enabled with Priv.
        0x120: [0x1b, 0, 0x01, 0x00, 0x06, 0x14, 0x05, 0x00],
      }),
    );
    expect(linesFrom(text, '\tCapabilities: [100', 10)).toEqual([
      '\tCapabilities: [100 v1] Address Translation Service (ATS)',
      '\t\tATSCap:\tInvalidate Queue Depth: 10',
      '\t\tATSCtl:\tEnable+, Smallest Translation Unit: 01',
      '\tCapabilities: [110 v1] Page Request Interface (PRI)',
      '\t\tPRICtl: Enable+ Reset-',
      '\t\tPRISta: RF- UPRGI- Stopped+ PASID+',
      '\t\tPage Request Capacity: 00000200, Page Request Allocation: 00000020',
      '\tCapabilities: [120 v1] Process Address Space ID (PASID)',
      '\t\tPASIDCap: Exec+ Priv+, Max PASID Width: 14',
      '\t\tPASIDCtl: Enable+ Exec- Priv+',
    ]);
  });

  test('an MSI capability without 64-bit addresses has its data at 8', () => {
    const text = lspciText(built({ 0x40: [0x05, 0, 0x15, 0x00, 0x0c, 0xf0, 0xe0, 0xfe, 0x41, 0x40] }));
    // 0015h: enabled, capable of 4 messages, 2 enabled.
    expect(linesFrom(text, '\tCapabilities', 2)).toEqual([
      '\tCapabilities: [40] MSI: Enable+ Count=2/4 Maskable- 64bit-',
      '\t\tAddress: fee0f00c  Data: 4041',
    ]);
  });

  test('a slower link is remarked in an endpoint, a power limit above EFh is in steps', () => {
    const express = [...EXPRESS, 0, 0, 0xcc, 0x03, 0, 0, 0, 0, 0x43, 0, 0, 0, 0, 0, 0x12, 0];
    const text = lspciText(built({ 0x40: express }));
    // Slot Power Limit Value F3h: 250 W + 3 * 25 W.
    expect(text).toContain(' SlotPowerLimit 325W\n');
    expect(text).toContain('\t\tLnkSta:\tSpeed 5GT/s (downgraded), Width x1 (downgraded)\n');
  });

  test('those without a decoder', () => {
    const text = lspciText(
      built({
        0x40: [0x10, 0x80, 0x02, 0x00],
        0x80: [0x50, 0x00, 0xcd, 0xab],
        0x100: [0x34, 0x12, 0x01, 0x15],
        0x150: [0x25, 0x00, 0x01, 0x16],
        0x160: [0x0b, 0x00, 0x01, 0x00, 0x42, 0x00, 0x03, 0x02],
      }),
    );
    expect(linesFrom(text, '\tCapabilities: [80]', 5)).toEqual([
      '\tCapabilities: [80] Capability ID 0x50 [abcd]',
      '\tCapabilities: [100 v1] Extended Capability ID 0x1234',
      '\tCapabilities: [150 v1] Data Link Feature <?>',
      '\tCapabilities: [160 v1] Vendor Specific Information: ID=0042 Rev=3 Len=020 <?>',
      '',
    ]);
  });

  test('lists that come back, and one that is broken', () => {
    const looped = built({ 0x40: [0x0c, 0x48], 0x48: [0x0c, 0x40] });
    expect(linesFrom(lspciText(looped), '\tCapabilities', 4)).toEqual([
      '\tCapabilities: [40] Hot-plug capable',
      '\tCapabilities: [48] Hot-plug capable',
      '\tCapabilities: [40] <chain looped>',
      '',
    ]);
    expect(lspciText(built({ 0x40: [0xff, 0xff] }))).toContain('\tCapabilities: [40] <chain broken>\n');
    const extended = built({ 0x40: EXPRESS, 0x100: [0x25, 0, 0x01, 0x10] });
    expect(linesFrom(lspciText(extended), '\tCapabilities: [100', 3)).toEqual([
      '\tCapabilities: [100 v1] Data Link Feature <?>',
      '\tCapabilities: [100 v1] <chain looped>',
      '',
    ]);
  });

  test('what was not given', () => {
    const whole = recorded('arm64-smmuv3-gicv3-rootports-7.3', '0000:00:02.0');
    const header = lspciText({ ...whole, config: whole.config.slice(0, 64) });
    expect(header.match(/Capabilities/g)).toHaveLength(1);
    expect(header).toContain('\tCapabilities: <access denied>\n');
    // The IDs are in a capability.
    expect(header).not.toContain('Subsystem');

    const conventional = lspciText({ ...whole, config: whole.config.slice(0, 256) });
    expect(conventional).toContain('\tCapabilities: [48] MSI-X: Enable+ Count=1 Masked-\n');
    expect(conventional).not.toContain('Advanced Error Reporting');
    expect(conventional).not.toContain('<access denied>');

    // Up to the middle of the ACS capability at 148h.
    const cut = lspciText({ ...whole, config: whole.config.slice(0, 0x14c) });
    expect(cut).toContain('\tCapabilities: [148 v1] <access denied>\n');
  });

  test('a function that is gone', () => {
    const gone = { bdf: '0000:00:03.0', config: new Uint8Array(4096).fill(0xff) };
    expect(lspciText(gone)).toBe(
      '0000:00:03.0 Unassigned class [ffff]: ffff:ffff (rev ff) (prog-if ff)\n\t!!! Unknown header type 7f\n',
    );
  });
});

describe('properties', () => {
  const isText = (text: string): void => {
    const lines = text.split('\n');
    expect(lines.pop()).toBe('');
    expect(lines[0]).toMatch(/^0000:00:03\.0 /);
    expect(lines.slice(1).every((line) => line.startsWith('\t'))).toBe(true);
    expect(text).not.toMatch(/undefined|NaN/);
  };

  test('any bytes are printed', () => {
    const bytes = fc.uint8Array({ minLength: 64, maxLength: 4096, size: 'max' });
    const resource = fc.record({
      index: fc.nat(16),
      start: fc.bigInt(0n, 2n ** 64n - 1n),
      last: fc.bigInt(0n, 2n ** 64n - 1n),
      flags: fc.bigInt(0n, 2n ** 32n),
    });
    fc.assert(
      fc.property(
        bytes,
        fc.option(fc.array(resource), { nil: undefined }),
        fc.boolean(),
        (config, resources, isBridge) => {
          // Random header types are mostly unknown ones, and random lists mostly absent.
          config[0x0e] = isBridge ? 0x81 : 0x00;
          config[0x06] = (config[0x06] ?? 0) | 0x10;
          isText(lspciText({ bdf: '0000:00:03.0', config, ...(resources === undefined ? {} : { resources }) }));
        },
      ),
    );
  });

  test('any contents of any capability are printed', () => {
    const chain = fc.array(fc.tuple(fc.nat(0x15), fc.uint8Array({ minLength: 0x3a, maxLength: 0x3a })), {
      // Two fit above 0x80: the list's pointers have eight bits.
      maxLength: 2,
    });
    const extended = fc.array(fc.tuple(fc.nat(0x30), fc.uint8Array({ minLength: 0x5c, maxLength: 0x5c })), {
      maxLength: 40,
    });
    fc.assert(
      fc.property(chain, extended, fc.nat(15), fc.integer({ min: 64, max: 4096 }), (first, second, type, sizeBytes) => {
        const config = built({ 0x40: [0x10, 0, 0x02 | (type << 4), 0x01] }).config;
        first.forEach(([id, body], i) => {
          config[0x41 + i * 0x40] = 0x80 + i * 0x40;
          config[0x80 + i * 0x40] = id;
          config.set(body, 0x82 + i * 0x40);
        });
        second.forEach(([id, body], i) => {
          const next = i + 1 === second.length ? 0 : 0x100 + (i + 1) * 0x60;
          config.set([id, 0, 0x01 | ((next & 0xf) << 4), next >> 4], 0x100 + i * 0x60);
          config.set(body, 0x104 + i * 0x60);
        });
        const text = lspciText({ bdf: '0000:00:03.0', config: config.slice(0, sizeBytes) });
        isText(text);
        if (sizeBytes === 4096) expect(text.match(/\tCapabilities: /g)).toHaveLength(1 + first.length + second.length);
      }),
    );
  });

  test('ACS bits are those printed', () => {
    const names = ['SrcValid', 'TransBlk', 'ReqRedir', 'CmpltRedir', 'UpstreamFwd', 'EgressCtrl', 'DirectTrans'];
    fc.assert(
      fc.property(fc.nat(0x7f), fc.nat(0x7f), (capability, control) => {
        const acs = [0x0d, 0, 0x01, 0, capability, 0, control, 0];
        const text = lspciText(built({ 0x40: EXPRESS, 0x100: acs }));
        const shown = (register: string): number =>
          names.reduce((value, name, i) => value | (new RegExp(`${register}:.*${name}\\+`).test(text) ? 1 << i : 0), 0);
        expect([shown('ACSCap'), shown('ACSCtl')]).toEqual([capability, control]);
      }),
    );
  });
});
