/** Byte strings: comparing them, and the pattern that engines and tests fill memory with. */

/** Whether two byte strings are the same. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

/** `lengthBytes` bytes of a 32-bit word repeated, least significant byte first; the last may be cut. */
export function repeatedWord(word: number, lengthBytes: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(lengthBytes / 4)).fill(word);
  return new Uint8Array(words.buffer, 0, lengthBytes);
}
