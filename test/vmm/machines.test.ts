/** Memory maps at the sizes where they change (domain.md B3, A3.21-A3.23, RR-2, RR-15, RR-40, RR-43). */
import { describe, expect, test } from 'vitest';
import { guestMemoryMap, MemoryMapError, type MachineName, type MachineOptions } from '../../src/vmm/machines.js';
import { GIB, MIB, type Range } from '../../src/vmm/ranges.js';

function ram(machine: MachineName, memoryBytes: bigint, options: Omit<MachineOptions, 'memoryBytes'> = {}): string[] {
  return guestMemoryMap(machine, { memoryBytes, ...options }).ram.map(text);
}

function text(range: Range): string {
  return `${range.start.toString(16)}-${range.last.toString(16)}`;
}

function fixedRange(machine: MachineName, name: string, options: MachineOptions): string | undefined {
  const found = guestMemoryMap(machine, options).fixed.find((range) => range.name === name);
  return found === undefined ? undefined : text(found);
}

describe('arm64', () => {
  test('QEMU virt is contiguous from 1 GiB', () => {
    expect(ram('qemu-virt', 4n * GIB)).toEqual(['40000000-13fffffff']);
    expect(ram('qemu-virt', 2n * GIB)).toEqual(['40000000-bfffffff']);
  });

  test('QEMU virt puts high regions above RAM, never below 256 GiB', () => {
    expect(fixedRange('qemu-virt', 'high PCIe MMIO', { memoryBytes: GIB })).toBe('8000000000-ffffffffff');
    expect(fixedRange('qemu-virt', 'high PCIe MMIO', { memoryBytes: 1024n * GIB })).toBe('18000000000-1ffffffffff');
  });

  test('cloud-hypervisor leaves 0xfc000000-0xffffffff out', () => {
    expect(ram('cloud-hypervisor-arm64', 4n * GIB)).toEqual(['40000000-fbffffff', '100000000-143ffffff']);
  });

  test('the ITS of cloud-hypervisor enters the software MSI window at 119 vCPUs', () => {
    const its = (vcpus: number) => fixedRange('cloud-hypervisor-arm64', 'ITS', { memoryBytes: GIB, vcpus });
    expect(its(118)).toBe('8110000-812ffff');
    expect(its(119)).toBe('80f0000-810ffff');
  });

  test('crosvm and kvmtool start at 2 GiB', () => {
    expect(ram('crosvm-arm64', 4n * GIB)).toEqual(['80000000-17fffffff']);
    expect(ram('kvmtool-arm64', 4n * GIB)).toEqual(['80000000-17fffffff']);
  });

  test('openvmm ends low RAM below 0xdc000000, cut at a GiB, in each of its three layouts', () => {
    expect(ram('openvmm-uefi', 3n * GIB)).toEqual(['0-bfffffff']);
    expect(ram('openvmm-uefi', 4n * GIB)).toEqual(['0-bfffffff', '100000000-13fffffff']);
    expect(ram('openvmm-uefi', 0xdc000000n)).toEqual(['0-dbffffff']);
    expect(ram('openvmm-linux', 4n * GIB)).toEqual(['40000000-bfffffff', '100000000-17fffffff']);
    expect(ram('openvmm-uefi-split', GIB)).toEqual(['0-1ffffff', '40000000-7dffffff']);
    expect(ram('openvmm-uefi-split', 16n * MIB)).toEqual(['0-ffffff']);
  });
});

describe('x86', () => {
  test('q35 splits at 2 GiB from 2.75 GiB on, so 4 GiB and 2.5 GiB guests have different maps', () => {
    expect(ram('qemu-q35', 2560n * MIB)).toEqual(['0-9ffff', 'c0000-9fffffff']);
    expect(ram('qemu-q35', 2815n * MIB)).toEqual(['0-9ffff', 'c0000-afefffff']);
    expect(ram('qemu-q35', 2816n * MIB)).toEqual(['0-9ffff', 'c0000-7fffffff', '100000000-12fffffff']);
    expect(ram('qemu-q35', 4n * GIB, { maxRamBelow4gBytes: GIB })).toEqual([
      '0-9ffff',
      'c0000-3fffffff',
      '100000000-1bfffffff',
    ]);
  });

  test('pc splits at 3 GiB from 3.5 GiB on', () => {
    expect(ram('qemu-pc', 3583n * MIB)).toEqual(['0-9ffff', 'c0000-dfefffff']);
    expect(ram('qemu-pc', 3584n * MIB)).toEqual(['0-9ffff', 'c0000-bfffffff', '100000000-11fffffff']);
  });

  test.each([
    ['qemu-q35', 978n],
    ['qemu-pc', 1009n],
  ] as const)('%s moves RAM above 1 TiB for AMD vCPUs beyond %s GiB', (machine, limitGib) => {
    const amd = { vcpuVendor: 'amd' } as const;
    expect(ram(machine, limitGib * GIB, amd)[2]).toMatch(/^100000000-/);
    expect(ram(machine, limitGib * GIB + MIB, amd)[2]).toMatch(/^10000000000-/);
    expect(ram(machine, limitGib * GIB + MIB, { vcpuVendor: 'intel' })[2]).toMatch(/^100000000-/);
    expect(ram(machine, limitGib * GIB + MIB, { ...amd, enforce_amd_1tb_hole: false })[2]).toMatch(/^100000000-/);
  });

  test('AMD vCPUs reserve the HyperTransport hole', () => {
    const options = { memoryBytes: GIB, vcpuVendor: 'amd' } as const;
    expect(fixedRange('qemu-q35', 'HyperTransport', options)).toBe('fd00000000-ffffffffff');
    expect(fixedRange('qemu-q35', 'HyperTransport', { memoryBytes: GIB })).toBeUndefined();
  });

  test('room for added memory moves the PCI hole, and AMD RAM earlier', () => {
    const options = { memoryBytes: 4n * GIB, hotplugMemoryBytes: 8n * GIB };
    expect(fixedRange('qemu-q35', '64-bit PCI hole', options)).toBe('380000000-b7fffffff');
    const amd = { vcpuVendor: 'amd', hotplugMemoryBytes: 8n * GIB } as const;
    expect(ram('qemu-q35', 970n * GIB, amd)[2]).toMatch(/^100000000-/);
    expect(ram('qemu-q35', 971n * GIB, amd)[2]).toMatch(/^10000000000-/);
  });

  test('cloud-hypervisor and crosvm', () => {
    expect(ram('cloud-hypervisor-x86', 4n * GIB)).toEqual(['0-bfffffff', '100000000-13fffffff']);
    expect(ram('crosvm-x86', 4n * GIB)).toEqual(['0-cfffffff', '100000000-12fffffff']);
  });
});

describe('refusals', () => {
  test.each([
    ['not whole pages', 'qemu-virt', { memoryBytes: GIB + 1n }],
    ['too small', 'qemu-pc', { memoryBytes: 4096n }],
    ['phys-bits too low', 'qemu-q35', { memoryBytes: 1100n * GIB, vcpuVendor: 'amd', physicalAddressBits: 40 }],
    ['max-ram-below-4g', 'qemu-pc', { memoryBytes: GIB, maxRamBelow4gBytes: 4096n }],
  ] as const)('%s', (reason, machine, options) => {
    expect(() => guestMemoryMap(machine, options)).toThrow(MemoryMapError);
    expect(() => guestMemoryMap(machine, options)).toThrow(reason);
  });
});
