/**
 * What the objects of a machine are called in traces: the same in every run, and in words that the kernel's people know.
 *
 * Objects are numbered as they are met. Their names come from the machine when it is looked at (`area 0x1000000 of ioas 1`), from
 * what they say of themselves (locks their class), else from their kind.
 */
import { RwSemaphore, Mutex } from '../runtime/locks.js';
import { WaitQueue } from '../runtime/task.js';
import { IoptArea } from '../kernel/iommufd/area.js';
import { IommufdObject } from '../kernel/iommufd/object.js';
import { IoptPages } from '../kernel/iommufd/pages.js';

/** Kinds whose objects no walk over the machine meets, or too late. */
const KINDS: Readonly<Record<string, string>> = {
  ObjectTable: 'objects of /dev/iommu',
  IommufdContext: '/dev/iommu',
  IommufdGroups: 'groups of /dev/iommu',
  MmapOffsets: 'mmap offsets of /dev/iommu',
  PageStore: 'page',
  PageAllocator: 'page allocator',
  Things: 'name',
  Tlb: 'TLB',
  InFlight: 'transactions',
  RegisterFile: 'SMMU register',
  StreamConfigurations: 'SMMU configuration cache',
  EventQueue: 'event queue',
  CommandQueue: 'command queue',
  LegalityChecker: 'checks of the SMMU',
  Arena: 'kernel memory',
  ArmSmmuV3: 'SMMU driver',
  ArmSmmuDomain: 'page table',
  MockDomain: 'page table',
  TagSpace: 'ASIDs and VMIDs',
  IommuGroup: 'IOMMU group',
  IommufdGroup: 'group of /dev/iommu',
  PciFunction: 'function',
  Atc: 'ATC',
  FaultSwitches: 'fault',
  KernelMachine: 'machine',
  MmStruct: 'address space',
  FdTable: 'descriptors',
  UserStruct: 'user',
  IoPageTable: 'ioas',
  AreaTree: 'ioas',
  MappingCheck: 'checks of mappings',
  DirtyWrites: 'checks of dirty pages',
  SwMsiPages: 'MSI doorbell pages',
  Set: 'MSI doorbells of a group',
  VfioMigration: 'migration',
  MigrationUnit: 'card',
  DmaEngine: 'DMA engine',
  Card: 'file of the card',
  SavingFile: 'saved data',
  ResumingFile: 'resuming data',
};

/** What objects without a class of their own are called, by what they have. */
function kindOfPlain(object: object): string {
  if ('stale' in object) return 'table checks';
  if ('prepare_msi' in object) return 'attach handle';
  return 'type' in object ? `${String(object.type)} domain` : 'object';
}

/** Kinds of which there may be several. */
function kindOf(object: object): string {
  if (object instanceof Mutex) return `mutex ${object.lockClass}`;
  if (object instanceof RwSemaphore) return `rwsem ${object.lockClass}`;
  if (object instanceof WaitQueue) return `waiters for ${object.name}`;
  if (object instanceof IoptArea) return `area 0x${object.iova.toString(16)}`;
  if (object instanceof IoptPages) return 'pages';
  if (object instanceof IommufdObject && object.id > 0) return `${object.type} ${object.id}`;
  if (object.constructor === Object) return kindOfPlain(object);
  return KINDS[object.constructor.name] ?? object.constructor.name;
}

/** Numbers and names of objects. */
export class ObjectNames {
  readonly #numbers = new Map<object, number>();
  readonly #objects: object[] = [];
  readonly #labels = new Map<object, string>();

  /** The number of an object. */
  numberOf(object: object): number {
    let number = this.#numbers.get(object);
    if (number === undefined) {
      number = this.#objects.push(object) - 1;
      this.#numbers.set(object, number);
    }
    return number;
  }

  /** The machine says what an object is called. The first name stays. */
  name(object: object, label: string): void {
    if (!this.#labels.has(object)) this.#labels.set(object, label);
  }

  /** Names of all objects by number; those of the same name are told apart. */
  names(): string[] {
    const labels = this.#objects.map((object) => this.#labels.get(object) ?? kindOf(object));
    const owners = new Map<string, object[]>();
    for (const [i, label] of labels.entries()) {
      const object = this.#objects[i];
      // A table of mappings and its tree are one thing to people.
      if (object !== undefined && !this.#labels.has(object)) owners.set(label, [...(owners.get(label) ?? []), object]);
    }
    return labels.map((label, i) => {
      const alike = owners.get(label) ?? [];
      const place = alike.indexOf(this.#objects[i] ?? owners);
      return alike.length > 1 && place >= 0 ? `${label} #${place + 1}` : label;
    });
  }
}
