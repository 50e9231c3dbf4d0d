/** Worker entry of `explore --jobs`: a chunk of consecutive runs. */
import type { ExploreJob } from '../src/explore/campaign.js';
import { sample, type Sampled } from '../src/explore/explore.js';
import { subjectOf, type Subject } from '../src/explore/subject.js';
import { loadScenario } from '../src/scenario/load.js';

/** The scenario of the last job: jobs of one campaign have the same. */
let loaded: { readonly text: string; readonly subject: Subject } | undefined;

/** Carries out a job. */
export default async function exploreWorker({ file, text, seed, sampling, first, end }: ExploreJob): Promise<Sampled> {
  if (loaded?.text !== text) loaded = { text, subject: subjectOf(loadScenario(file, text), seed) };
  return await sample(loaded.subject, sampling, { first, end });
}
