/**
 * Where the recorded SMMUv3 model is known to differ from the architecture and the recording does not say what the
 * architecture does: the closed list of reasons for which a case that disagrees is skipped and not failed.
 *
 * An excuse is a tag of the recording together with the difference that tag is about. Every difference of a case needs one:
 * a tag alone excuses nothing, and an excused step does not excuse the next.
 */

/** What of a step differs. An index register has its recorded name, a register that was read its offset. */
export interface Difference {
  readonly where: string;
  readonly subject: string;
  readonly expected: string;
  readonly found: string;
}

/** One reason to skip. */
export interface Excuse {
  readonly tag: string;
  readonly reason: string;
  readonly covers: (difference: Difference) => boolean;
}

const COMMAND_REGISTERS = ['cmdqCons', 'cmdqProd', 'gerror'];
const REGISTER_SUBJECT = /^(0x|gerror|cmdq|evtq)/;

function isCommandQueue({ subject }: Difference): boolean {
  return COMMAND_REGISTERS.includes(subject);
}

function isRegister({ subject }: Difference): boolean {
  return REGISTER_SUBJECT.test(subject);
}

/** A transfer that we end, with an event that `event` matches or with none. */
function isOurAbort(event: RegExp): Excuse['covers'] {
  return ({ subject, expected, found }) =>
    subject === 'transfer' && expected !== found && (/^abort \[\] *$/.test(found) || event.test(found));
}

/** Every excuse; docs/conformance.md has the same table for people. */
export const EXCUSES: readonly Excuse[] = [
  {
    tag: 'dev.unprivileged-access',
    reason: 'a PCIe access without PASID is unprivileged: AP[1] = 0 and APTable[0] deny it, the model lets it through',
    covers: ({ subject, expected, found }) =>
      isOurAbort(/^abort \[\] F_PERMISSION \S+ \S+ s2=0 /)({ where: '', subject, expected, found }) ||
      (subject === 'arch' && /^abort F_PERMISSION \S+ \S+ s2=0 /.test(found)),
  },
  {
    tag: 'dev.unsupported-command-accepted',
    reason: 'a command that the identification registers do not offer is CERROR_ILL, the model consumes it',
    covers: isCommandQueue,
  },
  {
    tag: 'dev.event-queue-overflow',
    reason: 'a full event queue toggles EVENTQ_PROD.OVFLG, the model raises GERROR.EVENTQ_ABT_ERR',
    covers: ({ subject }) => ['gerror', 'gerrorn', 'evtqProd', '0x60', '0x64', '0x100a8'].includes(subject),
  },
  {
    tag: 'dev.reserved-register-bits',
    reason: 'reserved bits of registers read as zero, the model keeps what is written',
    covers: isRegister,
  },
  {
    tag: 'dev.bypass-address-size',
    reason: 'in bypass an address beyond the output size does not get through, in the model it does',
    covers: isOurAbort(/^abort \[\] F_ADDR_SIZE /),
  },
  {
    tag: 'check.ssec',
    reason: 'SSec on a command of the Non-secure queue: left open for commands without the field',
    covers: isCommandQueue,
  },
  { tag: 'check.sync-cs3', reason: 'CMD_SYNC with the reserved CS = 3: left open', covers: isCommandQueue },
  {
    tag: 'check.prod-beyond-queue',
    reason: 'a producer index beyond the queue: CONSTRAINED UNPREDICTABLE',
    covers: isCommandQueue,
  },
  {
    tag: 'check.gerrorn-toggles-inactive',
    reason: 'acknowledging an error that is not active: CONSTRAINED UNPREDICTABLE',
    covers: isRegister,
  },
  { tag: 'check.reset-values', reason: 'registers whose reset value is UNKNOWN', covers: isRegister },
];

/** The excuse among `tags` that explains this difference. */
export function excuseFor(tags: readonly string[], difference: Difference): Excuse | undefined {
  return EXCUSES.find((excuse) => tags.includes(excuse.tag) && excuse.covers(difference));
}

/** `step 3 gerror: expected 4, got 0` */
export function differenceText({ where, subject, expected, found }: Difference): string {
  return `${where} ${subject}: expected ${expected}, got ${found}`;
}
