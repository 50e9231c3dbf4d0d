/** A kernel-only machine as plain data: what {@link MachineViewer} sees and pages of reports draw. */

/** A mapped range of an address space. */
export interface AreaView {
  readonly iova: string;
  readonly lengthBytes: number;
  /** `taken`: being mapped; `going`: being unmapped. */
  readonly state: 'taken' | 'mapped' | 'going';
  /** Pages pinned for page tables. */
  readonly pins: number;
  /** Accesses that have pages pinned. */
  readonly accesses: number;
}

/** One thing that is looked at; `kind` says which rows it has. */
export type PartView =
  | {
      readonly kind: 'ioas';
      readonly areas: readonly AreaView[];
      readonly reserved: readonly (readonly [string, string])[];
    }
  | {
      readonly kind: 'table';
      readonly ranges: readonly {
        readonly iova: string;
        readonly pa: string;
        readonly lengthBytes: number;
        readonly flags: string;
        /** Undefined where nobody tracks. */
        readonly dirty?: boolean;
        /** An entry that a walk from the root does not find. */
        readonly isUnreachable?: true;
      }[];
    }
  | {
      readonly kind: 'tlb' | 'atc';
      readonly entries: readonly {
        readonly tag: string;
        readonly iova: string;
        readonly pa: string;
        readonly lengthBytes: number;
        readonly clean?: boolean;
      }[];
    }
  | { readonly kind: 'counts'; readonly counts: Readonly<Record<string, number>> };

/** Parts by name, e.g. `ioas 1`, `page table of hwpt 3`, `TLB`. */
export type MachineView = Readonly<Record<string, PartView>>;
