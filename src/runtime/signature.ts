/** What two failures of one kind have in common. */

/** A failure's message without numbers: failures with the same signature happened for the same reason. */
export function signatureOf(message: string): string {
  return (
    message
      .replaceAll(/0x[0-9a-f]+/g, '#')
      // A fraction is one number; what is left of addresses of functions and of versions is several.
      .replaceAll(/(?<![\d.:])\d+\.\d+(?![\d.])/g, '#')
      .replaceAll(/(?<!INV-\d?)\d+/g, '#')
      .slice(0, 160)
  );
}

/** How the message of a failure begins that is an answer which a program did not allow. */
export const UNEXPECTED_ANSWER = 'unexpected answer';
