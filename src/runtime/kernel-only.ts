/** What the files of kernel-only scenarios are held against, and the machine that runs them is made of. */

/** RAM that processes get their pages from. */
export const MACHINE_MEMORY_BYTES = 256 * 2 ** 20;
/** Memory of its own that a task has for the arguments of its calls; of that, what is behind the struct. */
export const ARGUMENT_BYTES = 16 * 4096;
export const DATA_BYTES = ARGUMENT_BYTES - 4096;

/** What the calls before all tasks are called in reports. */
export const SETUP_TASK = 'setup';
