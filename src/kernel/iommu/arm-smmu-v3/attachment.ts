/**
 * Whether what an SMMU reads of a device says that it is in a domain: its stream table entry, and its context descriptor.
 *
 * What the driver believes is not asked. Source: Arm IHI 0070 5.2, 5.4; domain.md INV-8.
 */
import { CD, STE, STE_CONFIG } from '../../../hardware/smmu/records.js';
import type { IommuDomain } from '../domain.js';
import { ArmSmmuDomain } from './domain.js';
import { ArmSmmuNestedDomain } from './vsmmu.js';

const PLAIN_CONFIG: Partial<Record<IommuDomain['type'], number>> = {
  blocked: STE_CONFIG.ABORT,
  identity: STE_CONFIG.BYPASS,
};

/** What is wrong with a stream table entry (`cd`: the context descriptor it should lead to) for a domain; undefined for nothing. */
export function attachmentProblem(
  domain: IommuDomain,
  ste: Uint32Array,
  cd: { readonly address: number; readonly words: Uint32Array } | undefined,
): string | undefined {
  if (STE.get(ste, 'V') === 0) return 'the stream table entry is invalid';
  const config = STE.get(ste, 'Config');
  if (domain instanceof ArmSmmuNestedDomain) {
    const { tag } = domain.vsmmu.parent;
    if (domain.config === STE_CONFIG.ABORT) return config === STE_CONFIG.ABORT ? undefined : `Config is ${config}`;
    return STE.get(ste, 'S2VMID') === tag ? undefined : `VMID ${STE.get(ste, 'S2VMID')} instead of ${tag}`;
  }
  if (!(domain instanceof ArmSmmuDomain)) {
    return config === PLAIN_CONFIG[domain.type] ? undefined : `Config is ${config}, the domain is ${domain.type}`;
  }
  const { table, tag } = domain;
  if (domain.stage === 2) {
    const isIt = config === STE_CONFIG.S2_TRANS && STE.get(ste, 'S2VMID') === tag;
    return isIt && STE.get(ste, 'S2TTB') * 16 === table.rootAddress ? undefined : 'stage 2 is of another domain';
  }
  if (config !== STE_CONFIG.S1_TRANS || cd === undefined) return `Config is ${config}, the domain is a stage 1`;
  if (STE.get(ste, 'S1ContextPtr') * 64 !== cd.address) return 'the entry leads to another context descriptor';
  const isIt = CD.get(cd.words, 'V') === 1 && CD.get(cd.words, 'ASID') === tag;
  return isIt && CD.get(cd.words, 'TTB0') * 16 === table.rootAddress ? undefined : 'stage 1 is of another domain';
}
