/**
 * ACPI tables as bytes: the common header, and little-endian reads that cannot run off the end.
 *
 * A firmware table is input. What its header or a length field contradicts is a {@link FirmwareError} with the offset; what
 * an operating system would shrug at (an entry of an unknown type) is skipped by the caller, by its length.
 *
 * Source: ACPI 6.5 5.2.6.
 */

/** A table that contradicts itself. */
export class FirmwareError extends Error {
  readonly table: string;
  readonly offset: number;

  constructor(table: string, offset: number, message: string) {
    super(`${table}: offset 0x${offset.toString(16)}: ${message}`);
    this.table = table;
    this.offset = offset;
  }
}

const HEADER_BYTES = 36;

/** A table whose signature and length have been checked. */
export class AcpiTable {
  readonly signature: string;
  readonly lengthBytes: number;
  readonly #bytes: Uint8Array;

  /** @throws FirmwareError when it is shorter than its header says, or another table */
  constructor(signature: string, bytes: Uint8Array) {
    this.signature = signature;
    this.#bytes = bytes;
    if (bytes.length < HEADER_BYTES) throw this.error(0, `${bytes.length} bytes are no ACPI table`);
    const found = String.fromCharCode(...bytes.subarray(0, 4));
    if (found !== signature) throw this.error(0, `the signature is ${JSON.stringify(found)}`);
    this.lengthBytes = this.u32(4);
    if (this.lengthBytes < HEADER_BYTES || this.lengthBytes > bytes.length)
      throw this.error(4, `the length is ${this.lengthBytes}, there are ${bytes.length} bytes`);
  }

  error(offset: number, message: string): FirmwareError {
    return new FirmwareError(this.signature, offset, message);
  }

  u8(offset: number): number {
    return this.#number(offset, 1);
  }

  u16(offset: number): number {
    return this.#number(offset, 2);
  }

  u32(offset: number): number {
    return this.#number(offset, 4);
  }

  u64(offset: number): bigint {
    return BigInt(this.u32(offset)) | (BigInt(this.u32(offset + 4)) << 32n);
  }

  /** Structures from `start` to `end`, one after the other; `lengthOf` reads one's length, which must bring the walk on. */
  *structures(
    start: number,
    end: number,
    lengthOf: (at: number) => number,
    least = 1,
  ): Generator<[at: number, end: number]> {
    for (let at = start; at < end;) {
      const length = lengthOf(at);
      if (length < least || at + length > end) throw this.error(at, `a structure of ${length} bytes`);
      yield [at, at + length];
      at += length;
    }
  }

  #number(offset: number, sizeBytes: number): number {
    if (offset < 0 || offset + sizeBytes > this.#bytes.length) throw this.error(offset, 'beyond the end of the table');
    let value = 0;
    for (let i = sizeBytes - 1; i >= 0; i--) value = value * 256 + (this.#bytes[offset + i] ?? 0);
    return value;
  }
}
