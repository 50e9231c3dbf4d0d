/** How an ioctl is declared: its number, the struct its argument points to, and the smallest size the kernel accepts. */
import type { FieldSpecs, Struct } from '../layout/struct.js';

/** A declared ioctl. `minimumBytes` is `offsetofend` of the last mandatory field (IOCTL_OP in iommufd/main.c). */
export interface Ioctl<F extends FieldSpecs> {
  readonly name: string;
  readonly number: number;
  readonly struct: Struct<F>;
  readonly minimumBytes: number;
}

/** Declares an ioctl whose argument is a pointer to `struct`. */
export function defineIoctl<F extends FieldSpecs>(
  name: string,
  number: number,
  struct: Struct<F>,
  lastMandatoryField: keyof F & string,
): Ioctl<F> {
  return { name, number, struct, minimumBytes: struct.endOf(lastMandatoryField) };
}
