/**
 * The kernel's command line and release: what of a host's kernel its user and its version decide.
 *
 * Source: Linux Documentation/admin-guide/kernel-parameters.txt.
 */

/** Parameters of /proc/cmdline; of one given twice the last counts, as for the kernel's own parsers used here. */
export class CommandLine {
  readonly #values = new Map<string, string>();

  constructor(text: string) {
    for (const word of text.split(/\s+/)) {
      if (word === '') continue;
      const at = word.indexOf('=');
      this.#values.set(at < 0 ? word : word.slice(0, at), at < 0 ? '' : word.slice(at + 1));
    }
  }

  get(name: string): string | undefined {
    return this.#values.get(name);
  }

  /** Whether a comma-separated parameter has this word (`intel_iommu=on,sm_on`). */
  has(name: string, word: string): boolean {
    return this.#values.get(name)?.split(',').includes(word) ?? false;
  }

  /** A boolean as kstrtobool reads it; undefined when absent or none. */
  flag(name: string): boolean | undefined {
    const first = this.#values.get(name)?.[0]?.toLowerCase();
    if (first === undefined) return undefined;
    if ('y1t'.includes(first)) return true;
    return 'n0f'.includes(first) ? false : undefined;
  }
}

/** Whether a release (`6.12.107+deb13-arm64`) is this version or a later one. */
export function isAtLeast(release: string, major: number, minor: number): boolean {
  const match = /^(\d+)\.(\d+)/.exec(release);
  const [found, sub] = [Number(match?.[1] ?? 0), Number(match?.[2] ?? 0)];
  return found > major || (found === major && sub >= minor);
}
