import tseslint from 'typescript-eslint';

/** What may not be used inside a run: wall clock, platform randomness, timers. design.md, law 2. */
const deterministicRooms = [
  'runtime',
  'checks',
  'core',
  'hardware',
  'kernel',
  'host',
  'vmm',
  'migration',
  'testbed',
  'scenario',
].map((room) => `src/${room}/**/*.ts`);
const forbiddenInRuns = [
  ['Date', 'wall clock'],
  ['performance', 'wall clock'],
  ['setTimeout', 'wall clock'],
  ['setInterval', 'wall clock'],
  ['setImmediate', 'order of the platform'],
  ['crypto', 'platform randomness'],
];

export default tseslint.config(
  { ignores: ['dist/**', 'out/**', 'coverage/**', 'src/core/wasm/*.as.ts', 'src/**/*.generated.ts'] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: {
          allowDefaultProject: ['*.js', '*.mjs', 'src/core/wasm/*.mjs', 'src/report/page/*.mjs', 'test/bench/*.mjs'],
        },
      },
    },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-non-null-assertion': 'error',
      // An overridable method or a callback may have to name what it does not use.
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      '@typescript-eslint/prefer-literal-enum-member': 'off',
      '@typescript-eslint/no-unnecessary-condition': ['error', { allowConstantLoopConditions: true }],
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      // Generator tasks that never wait are still tasks: their callers `yield*` them.
      'require-yield': 'off',
    },
  },
  {
    files: deterministicRooms,
    rules: {
      'no-restricted-globals': [
        'error',
        ...forbiddenInRuns.map(([name, why]) => ({ name, message: `${why} inside a run` })),
      ],
      'no-restricted-properties': [
        'error',
        { object: 'Math', property: 'random', message: 'use a RandomStream derived from the run seed' },
        { object: 'process', property: 'hrtime', message: 'wall clock inside a run' },
      ],
      'no-restricted-imports': [
        'error',
        {
          paths: [
            { name: 'nanoid', importNames: ['nanoid'], message: 'use the seeded ids of src/runtime/random.ts' },
            { name: 'node:perf_hooks', message: 'wall clock inside a run' },
            { name: 'node:timers', message: 'wall clock inside a run' },
          ],
        },
      ],
    },
  },
  { files: ['**/*.js', '**/*.mjs'], ...tseslint.configs.disableTypeChecked },
);
