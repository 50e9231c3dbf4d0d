/**
 * YAML input with positions: text → plain values, and every complaint as `file:line:column: message`.
 *
 * Integers become bigint, so that addresses above 2^53 stay exact. zod says what is wrong and where in the value; this
 * module says where that is in the file. A file is refused when it is longer than {@link MAX_TEXT} or nested so deeply that
 * the parser gives up: no input may crash or hang the program.
 */
import {
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  LineCounter,
  parseDocument,
  visit,
  type Document,
  type Node,
} from 'yaml';
import type { z } from 'zod';

/** Longest input in characters. */
const MAX_TEXT = 4_000_000;

/** A place in a text; both count from 1. */
export interface Position {
  readonly line: number;
  readonly column: number;
}

/** One thing that is wrong with an input file. */
export interface InputProblem extends Position {
  readonly file: string;
  readonly message: string;
}

/** `file:line:column: message`. */
export function problemText(problem: InputProblem): string {
  return `${problem.file}:${problem.line}:${problem.column}: ${problem.message}`;
}

/** An input file that cannot be used. The message has one line for each problem. */
export class InputError extends Error {
  override readonly name = 'InputError';
  readonly problems: readonly InputProblem[];

  constructor(problems: readonly InputProblem[]) {
    super(problems.map(problemText).join('\n'));
    this.problems = problems;
  }
}

/** Keys and indices that lead to a value. */
export type ValuePath = readonly PropertyKey[];

function positionOf(lines: LineCounter, offset: number): Position {
  const { line, col } = lines.linePos(offset);
  return { line: Math.max(line, 1), column: Math.max(col, 1) };
}

/** A parsed file that can still say where each of its values stands. */
export class SourceText {
  readonly file: string;
  readonly value: unknown;
  readonly #document: Document;
  readonly #lines: LineCounter;

  private constructor(file: string, document: Document, lines: LineCounter, value: unknown) {
    this.file = file;
    this.#document = document;
    this.#lines = lines;
    this.value = value;
  }

  /** @throws InputError when the text is not YAML. */
  static parse(file: string, text: string): SourceText {
    const refuse = (message: string): InputError => new InputError([{ file, line: 1, column: 1, message }]);
    if (text.length > MAX_TEXT) throw refuse(`the file is longer than ${MAX_TEXT} characters`);
    if (text.includes('\0')) throw refuse('the file is binary');
    const lines = new LineCounter();
    try {
      const document = parseDocument(text, {
        lineCounter: lines,
        intAsBigInt: true,
        prettyErrors: false,
        logLevel: 'error',
      });
      const [error] = document.errors;
      if (error !== undefined) {
        const message = error.code === 'MULTIPLE_DOCS' ? 'another document begins here' : error.message;
        throw new InputError([{ file, ...positionOf(lines, error.pos[0]), message }]);
      }
      visit(document, {
        Alias: (_, alias) => {
          if (alias.resolve(document) !== undefined) return;
          const place = positionOf(lines, alias.range?.[0] ?? 0);
          throw new InputError([{ file, ...place, message: `no anchor &${alias.source} comes before` }]);
        },
      });
      return new SourceText(file, document, lines, document.toJS({ maxAliasCount: 100 }));
    } catch (error) {
      if (error instanceof InputError) throw error;
      throw refuse(error instanceof Error ? error.message : String(error));
    }
  }

  /** Where a value stands; with `key`, where that key of it stands. Falls back to the nearest thing that exists. */
  position(path: ValuePath, key?: string): Position {
    let node: Node | undefined = this.#resolve(this.#document.contents ?? undefined);
    let best = node;
    for (const step of path) {
      node = this.#resolve(child(node, step));
      if (node === undefined) break;
      best = node;
    }
    if (key !== undefined && best !== undefined) best = keyNode(best, key) ?? best;
    return positionOf(this.#lines, best?.range?.[0] ?? 0);
  }

  /** A problem at a value. */
  problem(path: ValuePath, message: string, key?: string): InputProblem {
    return { file: this.file, ...this.position(path, key), message };
  }

  /** The value as `schema` understands it. @throws InputError naming every place it does not fit. */
  as<S extends z.ZodType>(schema: S): z.output<S> {
    if (this.value === null || this.value === undefined)
      throw new InputError([{ file: this.file, line: 1, column: 1, message: 'the file is empty' }]);
    const result = schema.safeParse(this.value, { error: words });
    if (result.success) return result.data;
    throw new InputError(result.error.issues.flatMap((issue) => this.#explain(issue, [])));
  }

  #explain(issue: z.core.$ZodIssue, base: ValuePath): InputProblem[] {
    const path = [...base, ...issue.path];
    const missing = this.#missingKey(path);
    if (missing !== undefined) {
      return [this.problem(path, `missing key ${JSON.stringify(missing)}: ${issue.message}`)];
    }
    switch (issue.code) {
      case 'unrecognized_keys':
        return issue.keys.map((key) => this.problem(path, `unknown key ${JSON.stringify(key)}`, key));
      case 'invalid_key':
        return [this.problem(path.slice(0, -1), issue.issues[0]?.message ?? issue.message, String(path.at(-1)))];
      case 'invalid_union':
        return this.#explainUnion(issue.errors, path, issue.message);
      default:
        return [this.problem(path, issue.message)];
    }
  }

  /** The last key of a path when the mapping that should have it is there and does not. */
  #missingKey(path: ValuePath): string | undefined {
    let parent: unknown = this.value;
    for (const step of path.slice(0, -1)) parent = isObject(parent) ? parent[step] : undefined;
    const key = path.at(-1);
    if (key === undefined || !isObject(parent) || Array.isArray(parent) || Object.hasOwn(parent, key)) return undefined;
    return String(key);
  }

  /** Of a union's alternatives, explains the one that was meant: the one whose keys are there. */
  #explainUnion(alternatives: readonly z.core.$ZodIssue[][], path: ValuePath, message: string): InputProblem[] {
    const meant = alternatives.find((issues) => issues.length > 0 && issues.every((issue) => issue.path.length > 0));
    if (meant !== undefined) return meant.flatMap((issue) => this.#explain(issue, path));
    return [this.problem(path, message)];
  }

  #resolve(node: Node | undefined): Node | undefined {
    return isAlias(node) ? node.resolve(this.#document) : node;
  }
}

/** What zod calls types, in words of a file. */
const KINDS: Readonly<Record<string, string>> = {
  array: 'a list',
  bigint: 'a whole number',
  boolean: 'true or false',
  int: 'a whole number',
  null: 'nothing',
  number: 'a number',
  object: 'keys with values',
  record: 'keys with values',
  string: 'text',
  undefined: 'nothing',
};

/** Characters of a value in a message. */
const MAX_FOUND = 40;

function foundText(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (isObject(value)) return 'keys with values';
  const scalar = value as string | number | bigint | boolean | null;
  return scalar === null ? 'nothing' : String(scalar).slice(0, MAX_FOUND);
}

/** What is wrong with a value, where the schema has no words of its own. */
function words(issue: z.core.$ZodRawIssue): string | undefined {
  if (issue.code === 'too_small' && issue.origin === 'array') return `expected a list of ${issue.minimum} or more`;
  const expected = new Set(expectations(issue));
  if (expected.size === 0) return undefined;
  const found = issue.input === undefined ? '' : `, found ${foundText(issue.input)}`;
  return `expected ${alternatives.format(expected)}${found}`;
}

const alternatives = new Intl.ListFormat('en-GB', { type: 'disjunction' });

function expectations(issue: z.core.$ZodRawIssue | z.core.$ZodIssue): string[] {
  switch (issue.code) {
    case 'invalid_type':
      return [KINDS[issue.expected] ?? issue.expected];
    case 'invalid_value':
      return issue.values.map(String);
    case 'invalid_union':
      return issue.errors.flatMap((issues) => issues.filter(({ path }) => path.length === 0).flatMap(expectations));
    default:
      return [];
  }
}

function isObject(value: unknown): value is Readonly<Record<PropertyKey, unknown>> {
  return typeof value === 'object' && value !== null;
}

function child(node: Node | undefined, step: PropertyKey): Node | undefined {
  let found: unknown;
  if (isMap(node)) {
    found = node.items.find((pair) => isScalar(pair.key) && String(pair.key.value) === String(step))?.value;
  } else if (isSeq(node) && typeof step === 'number') {
    found = node.items[step];
  }
  return isNode(found) ? found : undefined;
}

function keyNode(node: Node, key: string): Node | undefined {
  if (!isMap(node)) return undefined;
  const found = node.items.find((pair) => isScalar(pair.key) && String(pair.key.value) === key)?.key;
  return isNode(found) ? found : undefined;
}
