/**
 * MessagePack, by msgpackr without its native part.
 *
 * Everything that crosses a thread or is kept in a file as MessagePack is packed and unpacked by what this module exports,
 * and nothing else imports the library. msgpackr's main entry loads msgpackr-extract, whose scanner looks tokens up in a
 * table of the process, not of the thread, and every thread that loads it clears that table and fills it again: a thread
 * that unpacks meanwhile misreads lengths, and objects come out with broken keys. Threads come and go here all the time.
 * The entry imported here is the same code without the native scanner; `usesNativeCode` says so, and a test holds it.
 */
import type * as Msgpackr from 'msgpackr';
import * as portable from 'msgpackr/pack';

// The entry's own declarations do not resolve for ES modules; what it exports is what the main entry exports.
const msgpackr = portable as unknown as typeof Msgpackr;

export const { Packr, pack, unpack } = msgpackr;

/** Whether msgpackr's native scanner is in use in this thread: never true unless something loads its main entry. */
export function usesNativeCode(): boolean {
  return msgpackr.isNativeAccelerationEnabled;
}

/**
 * Packs a value into bytes of their own. msgpackr answers with a piece of its large buffer, and posting a piece would copy
 * the whole buffer to the other thread.
 */
export function packed(value: unknown): Uint8Array {
  return new Uint8Array(pack(value));
}
