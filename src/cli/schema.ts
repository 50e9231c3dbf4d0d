/** `iovaduct schema`: the JSON Schema of scenario files, for editors. */
import type { Command } from 'commander';

/** Adds the command. */
export function addSchemaCommand(program: Command): void {
  program
    .command('schema')
    .description('print the JSON Schema of scenario files')
    .action(async () => {
      const { scenarioSchemaText } = await import('../scenario/schema.js');
      process.stdout.write(scenarioSchemaText());
    });
}
