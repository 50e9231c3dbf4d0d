import { execFileSync } from 'node:child_process';

/** Builds dist/ (incrementally) so that tests which start workers or the command line run what is in the tree. */
export default function setup(): void {
  if (process.env['IOVADUCT_SKIP_BUILD'] === '1') return;
  execFileSync('npm', ['run', '--silent', 'build'], { stdio: 'inherit' });
}
