/** Our uAPI declarations against sizes, offsets and values that a C compiler took from the kernel's headers (layouts.json). */
import type { FieldSpecs, Struct } from '../layout/struct.js';
import type { Ioctl } from '../uapi/ioctl.js';
import * as iommufd from '../uapi/iommufd.js';
import * as vfio from '../uapi/vfio.js';

interface RecordedField {
  readonly name: string;
  readonly offset: number;
  readonly size: number;
  readonly flexible?: boolean;
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
  readonly kind: 'struct' | 'number';
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

/** Checks every struct, ioctl number and constant that src/uapi declares. */
export function checkLayouts(recorded: RecordedLayouts): LayoutCheck[] {
  const constants = new Map(
    [recorded.constants, ...Object.values(recorded.enums)].flatMap((values) => Object.entries(values)),
  );
  return Object.entries({ ...iommufd, ...vfio } as Record<string, unknown>).flatMap(([name, value]): LayoutCheck[] => {
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
}
