/** Our uAPI declarations against sizes, offsets and values that a C compiler took from the kernel's headers (layouts.json). */
import type { FieldSpecs, Struct } from '../layout/struct.js';
import type { Ioctl } from '../uapi/ioctl.js';
import * as iommufd from '../uapi/iommufd.js';
import * as iommufdTest from '../uapi/iommufd-test.js';
import * as vfio from '../uapi/vfio.js';

interface RecordedField {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
  readonly flexible?: boolean;
  /** Of an anonymous struct or union: its own fields, at offsets of the outer struct. */
  readonly fields?: readonly RecordedField[];
}

/** `layouts.json` */
export interface RecordedLayouts {
  readonly structs: Readonly<
    Record<string, { readonly size: number; readonly fields: readonly RecordedField[] } | undefined>
  >;
  readonly constants: Readonly<Record<string, number>>;
  readonly enums: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** Whether parsed JSON has the three parts of `layouts.json`. */
export function isRecordedLayouts(value: unknown): value is RecordedLayouts {
  if (typeof value !== 'object' || value === null) return false;
  const { structs, constants, enums } = value as Partial<Record<keyof RecordedLayouts, unknown>>;
  return [structs, constants, enums].every((part) => typeof part === 'object' && part !== null);
}

/** One declaration held against the record; `difference` is undefined when they agree. */
export interface LayoutCheck {
  readonly name: string;
  readonly kind: 'struct' | 'number' | 'undeclared';
  readonly difference: string | undefined;
}

function isStruct(value: unknown): value is Struct<FieldSpecs> {
  return typeof value === 'object' && value !== null && 'alignBytes' in value && 'fields' in value;
}

function isIoctl(value: unknown): value is Ioctl<FieldSpecs> {
  return typeof value === 'object' && value !== null && 'minimumBytes' in value;
}

function fieldsText(sizeBytes: number, fields: readonly { name: string; offset: number; size: number }[]): string {
  return `${sizeBytes} bytes: ${fields.map((field) => `${field.name}@${field.offset}+${field.size}`).join(' ')}`;
}

function structDifference(struct: Struct<FieldSpecs>, recorded: RecordedLayouts): string | undefined {
  const truth = recorded.structs[struct.name];
  if (truth === undefined) return 'not in the kernel headers';
  const declared = fieldsText(
    struct.sizeBytes,
    struct.fields.map(({ name, offset, sizeBytes }) => ({ name, offset, size: sizeBytes })),
  );
  // A flexible array is not part of sizeof and not declared here.
  const expected = fieldsText(
    truth.size,
    truth.fields.filter((field) => field.flexible !== true),
  );
  return declared === expected ? undefined : `expected ${expected} | found ${declared}`;
}

/** What iommufd's headers declare and src/uapi does not: names that match, and why. */
export const UNDECLARED: readonly { readonly names: RegExp; readonly reason: string }[] = [
  {
    names: /^IOMMUFD_(CMD_|TYPE$)/,
    reason: 'parts of ioctl numbers, which are declared and compared whole (IOMMU_*)',
  },
  { names: /vtd/i, reason: 'VT-d tables and queues: no board has a VT-d unit of its own' },
  { names: /amd/i, reason: 'AMD-Vi guest tables: no board has an AMD-Vi unit of its own' },
  { names: /tegra241/i, reason: "NVIDIA's command queue virtualisation beside an SMMUv3: no board has it" },
];

/** Names of the iommufd headers (the mock's included) that src/uapi does not declare: each with its reason, or as a difference. */
function undeclaredChecks(recorded: RecordedLayouts, declared: ReadonlySet<string>): LayoutCheck[] {
  const names = [recorded.structs, recorded.constants, ...Object.values(recorded.enums)].flatMap(Object.keys);
  return [...new Set(names)]
    .filter((name) => /^(iommu|IOMMU|MOCK)/.test(name) && !declared.has(name))
    .map((name) => ({
      name,
      kind: 'undeclared',
      difference: UNDECLARED.some(({ names: known }) => known.test(name)) ? undefined : 'declared nowhere in src/uapi',
    }));
}

/** Members of the test command's union: their fields are recorded where they lie in the command. */
function memberChecks(recorded: RecordedLayouts): LayoutCheck[] {
  const { iommu_test_cmd, iommu_test_member } = iommufdTest;
  const union = iommu_test_cmd.fields.find(({ name }) => name === 'add_reserved')?.offset ?? 0;
  return Object.entries(iommu_test_member).map(([name, struct]): LayoutCheck => {
    const truth = recorded.structs[iommu_test_cmd.name]?.fields.find((field) => field.name === name);
    const shifted = struct.fields.map((field) => ({
      name: field.name,
      offset: field.offset + union,
      size: field.sizeBytes,
    }));
    const declared = fieldsText(0, shifted);
    const expected = fieldsText(0, truth?.fields ?? []);
    const difference = declared === expected ? undefined : `expected ${expected} | found ${declared}`;
    return { name: `iommu_test_cmd.${name}`, kind: 'struct', difference };
  });
}

/** Checks every struct, ioctl number and constant that src/uapi declares, and that none of iommufd is missing without a reason. */
export function checkLayouts(recorded: RecordedLayouts): LayoutCheck[] {
  const constants = new Map(
    [recorded.constants, ...Object.values(recorded.enums)].flatMap((values) => Object.entries(values)),
  );
  const all = { ...iommufd, ...iommufdTest, ...vfio } as Record<string, unknown>;
  const declared = Object.entries(all).flatMap(([name, value]): LayoutCheck[] => {
    if (isStruct(value)) return [{ name, kind: 'struct', difference: structDifference(value, recorded) }];
    const number = isIoctl(value) ? value.number : value;
    if (typeof number !== 'number') return [];
    const expected = constants.get(name);
    return [
      {
        name,
        kind: 'number',
        difference:
          expected === number ? undefined : `expected ${expected ?? 'nothing of that name'} | found ${number}`,
      },
    ];
  });
  return [...declared, ...memberChecks(recorded), ...undeclaredChecks(recorded, new Set(Object.keys(all)))];
}
