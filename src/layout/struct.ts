/**
 * C structs, declared once.
 *
 * `defineStruct` turns one declaration into the type of the value, the byte offsets and the codec, so that a layout is
 * written down in exactly one place and a test can hold it against offsets recorded from a C compiler
 * (test/uapi/layouts.test.ts). Offsets follow the System V x86-64/AArch64 C ABI, which agree for the types used here:
 * each field is aligned to its own size, the struct to its largest member. Little-endian throughout.
 *
 * 64-bit fields are `bigint` at this edge (they are addresses and lengths of the uAPI and must be exact); everything
 * narrower is `number`. `overlay` puts a field on the same bytes as an earlier one (a C union member).
 */

/** How one field is stored. `T` is the type a program sees. */
export interface FieldType<T> {
  readonly sizeBytes: number;
  readonly alignBytes: number;
  readonly zero: () => T;
  readonly read: (view: DataView, offset: number) => T;
  readonly write: (view: DataView, offset: number, value: T) => void;
}

function scalar(
  sizeBytes: number,
  read: (view: DataView, offset: number) => number,
  write: (view: DataView, offset: number, value: number) => void,
): FieldType<number> {
  return { sizeBytes, alignBytes: sizeBytes, zero: () => 0, read, write };
}

/** `__u8` */
export const u8 = scalar(
  1,
  (v, o) => v.getUint8(o),
  (v, o, x) => v.setUint8(o, x),
);
/** `__u16` */
export const u16 = scalar(
  2,
  (v, o) => v.getUint16(o, true),
  (v, o, x) => v.setUint16(o, x, true),
);
/** `__u32` */
export const u32 = scalar(
  4,
  (v, o) => v.getUint32(o, true),
  (v, o, x) => v.setUint32(o, x, true),
);
/** `__s32` */
export const s32 = scalar(
  4,
  (v, o) => v.getInt32(o, true),
  (v, o, x) => v.setInt32(o, x, true),
);
/** `__u64`, `__aligned_u64`, `__le64`: a bigint, taken modulo 2^64 when written. */
export const u64: FieldType<bigint> = {
  sizeBytes: 8,
  alignBytes: 8,
  zero: () => 0n,
  read: (v, o) => v.getBigUint64(o, true),
  write: (v, o, x) => v.setBigUint64(o, x, true),
};

/** A C array of `length` elements. */
export function arrayOf<T>(element: FieldType<T>, length: number): FieldType<readonly T[]> {
  return {
    sizeBytes: element.sizeBytes * length,
    alignBytes: element.alignBytes,
    zero: () => Array.from({ length }, element.zero),
    read: (v, o) => Array.from({ length }, (_, i) => element.read(v, o + i * element.sizeBytes)),
    write: (v, o, values) => {
      if (values.length !== length) throw new RangeError(`array of ${length} elements expected, got ${values.length}`);
      values.forEach((value, i) => element.write(v, o + i * element.sizeBytes, value));
    },
  };
}

/** A struct nested by value. */
export function nested<F extends FieldSpecs>(struct: Struct<F>): FieldType<StructValue<F>> {
  return {
    sizeBytes: struct.sizeBytes,
    alignBytes: struct.alignBytes,
    zero: () => struct.zero(),
    read: (v, o) => struct.read(v, o),
    write: (v, o, x) => struct.write(v, o, x),
  };
}

/** A union member: lies on the bytes of the earlier field `on`. Written after it, and only if the value gives it. */
export interface Overlay<T> {
  readonly on: string;
  readonly type: FieldType<T>;
}

/** Declares a union member on the bytes of field `on`. */
export function overlay<T>(on: string, type: FieldType<T>): Overlay<T> {
  return { on, type };
}

// eslint-disable-next-line @typescript-eslint/no-explicit-any -- the declaration is heterogeneous; StructValue recovers each type
export type FieldSpecs = Record<string, FieldType<any> | Overlay<any>>;

/** The value of a struct declared with fields `F`. */
export type StructValue<F extends FieldSpecs> = {
  [K in keyof F]: F[K] extends FieldType<infer T> ? T : F[K] extends Overlay<infer T> ? T : never;
};

/** One field as laid out. */
export interface FieldLayout {
  readonly name: string;
  readonly offset: number;
  readonly sizeBytes: number;
}

/** A declared struct: layout and codec. */
export interface Struct<F extends FieldSpecs> {
  readonly name: string;
  readonly sizeBytes: number;
  readonly alignBytes: number;
  readonly fields: readonly FieldLayout[];
  /** Offset of the first byte after `field`: `offsetofend` of the kernel, used for minimum sizes. */
  endOf(field: keyof F & string): number;
  offsetOf(field: keyof F & string): number;
  zero(): StructValue<F>;
  read(view: DataView, offset?: number): StructValue<F>;
  write(view: DataView, offset: number, value: Partial<StructValue<F>>): void;
  /** Bytes of a struct; fields not given are zero. */
  encode(value: Partial<StructValue<F>>): Uint8Array;
  /** Reads a struct from the front of `bytes`, which may be longer but not shorter. */
  decode(bytes: Uint8Array): StructValue<F>;
}

interface Placed extends FieldLayout {
  readonly type: FieldType<unknown>;
  readonly isOverlay: boolean;
}

function place(name: string, specs: FieldSpecs): { placed: Placed[]; sizeBytes: number; alignBytes: number } {
  const placed: Placed[] = [];
  let cursor = 0;
  let alignBytes = 1;
  for (const [field, spec] of Object.entries(specs)) {
    if ('on' in spec) {
      const under = placed.find((p) => p.name === spec.on);
      if (under === undefined) throw new Error(`struct ${name}: ${field} lies on unknown field ${spec.on}`);
      placed.push({
        name: field,
        offset: under.offset,
        sizeBytes: spec.type.sizeBytes,
        type: spec.type,
        isOverlay: true,
      });
      cursor = Math.max(cursor, under.offset + spec.type.sizeBytes);
      alignBytes = Math.max(alignBytes, spec.type.alignBytes);
      continue;
    }
    const offset = Math.ceil(cursor / spec.alignBytes) * spec.alignBytes;
    placed.push({ name: field, offset, sizeBytes: spec.sizeBytes, type: spec, isOverlay: false });
    cursor = offset + spec.sizeBytes;
    alignBytes = Math.max(alignBytes, spec.alignBytes);
  }
  return { placed, sizeBytes: Math.ceil(cursor / alignBytes) * alignBytes, alignBytes };
}

function zeroBytes(view: DataView, offset: number, lengthBytes: number): void {
  for (let at = offset; at < offset + lengthBytes; at++) view.setUint8(at, 0);
}

/** Where structs pass between bytes and values: views on small arrays would cost more than the work. */
const scratch = new Uint8Array(4096);
const scratchView = new DataView(scratch.buffer);

/**
 * Declares a C struct.
 *
 * @throws Error when a union member names a field that does not exist.
 */
export function defineStruct<const F extends FieldSpecs>(name: string, specs: F): Struct<F> {
  const { placed, sizeBytes, alignBytes } = place(name, specs);
  const byName = new Map(placed.map((p) => [p.name, p]));
  const field = (key: string): Placed => {
    const found = byName.get(key);
    if (found === undefined) throw new Error(`struct ${name} has no field ${key}`);
    return found;
  };
  const struct: Struct<F> = {
    name,
    sizeBytes,
    alignBytes,
    fields: placed,
    endOf: (key) => field(key).offset + field(key).sizeBytes,
    offsetOf: (key) => field(key).offset,
    zero: () => {
      const value: Record<string, unknown> = {};
      for (const p of placed) value[p.name] = p.type.zero();
      return value as StructValue<F>;
    },
    read: (view, offset = 0) => {
      // Assigned one by one: every value of a struct has the same shape, which the engine remembers.
      const value: Record<string, unknown> = {};
      for (const p of placed) value[p.name] = p.type.read(view, offset + p.offset);
      return value as StructValue<F>;
    },
    write: (view, offset, value) => {
      const given = value as Record<string, unknown>;
      for (const p of placed) {
        const x = given[p.name];
        if (x !== undefined) p.type.write(view, offset + p.offset, x);
        else if (!p.isOverlay) zeroBytes(view, offset + p.offset, p.sizeBytes);
      }
    },
    encode: (value) => {
      scratch.fill(0, 0, sizeBytes);
      struct.write(scratchView, 0, value);
      return scratch.slice(0, sizeBytes);
    },
    decode: (bytes) => {
      if (bytes.length < sizeBytes) throw new RangeError(`${bytes.length} bytes are no struct ${name}`);
      for (let i = 0; i < sizeBytes; i++) scratch[i] = bytes[i] ?? 0;
      return struct.read(scratchView);
    },
  };
  if (sizeBytes > scratch.length) throw new RangeError(`struct ${name} has more than ${scratch.length} bytes`);
  return struct;
}
