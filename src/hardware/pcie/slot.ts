/**
 * A hot-plug slot: what is in it, whether it has power, and what its port's registers say about that.
 *
 * Present is a card that is in the slot; powered and linked is one that answers. Slot Control's power bit is software's
 * (pciehp), presence and the attention button are people's hands. Every change is latched in Slot Status until software
 * clears it (PCIe 5.0 6.7, 7.5.3.11, 7.5.3.10).
 */
import { PCI_CAP_ID_EXP, PCI_EXP_LNKCTL, PCI_EXP_SLTCTL } from '../../uapi/pci-regs.js';
import type { PciFunction } from './function.js';

/** The slot of a root or downstream port. */
export class Slot {
  readonly port: PciFunction;
  readonly #at: number;
  readonly #cards: () => readonly PciFunction[];
  readonly #inner: () => readonly Slot[];
  #isOccupied = false;
  #isOn = false;

  /** `cards`: the functions that are, or can be, in the slot, but for those in a slot of their own; `inner`: those slots. */
  constructor(port: PciFunction, cards: () => readonly PciFunction[], inner: () => readonly Slot[]) {
    this.port = port;
    this.#at = port.findCapability(PCI_CAP_ID_EXP);
    this.#cards = cards;
    this.#inner = inner;
  }

  /** A card is in it, with power or without. */
  get isOccupied(): boolean {
    return this.#isOccupied;
  }

  /** The machine is switched on: what is in the slot has power. */
  start(): void {
    this.#isOccupied = this.#cards().some((card) => card.isPresent);
    this.#isOn = this.#isOccupied;
    this.#setControl({ PCC: this.#isOn ? 0 : 1, PIC: this.#isOn ? INDICATOR_ON : INDICATOR_OFF, AIC: INDICATOR_OFF });
    this.#show({});
  }

  /** A card is put in. It answers once the slot has power. */
  insert(): void {
    this.#isOccupied = true;
    this.#show({ PDC: 1 });
    this.#setPower();
  }

  /** The card is pulled out, with or without a word to anybody before. */
  withdraw(): void {
    this.#isOccupied = false;
    this.#setPower();
    this.#show({ PDC: 1, DLLSC: 1 });
  }

  pressAttentionButton(): void {
    this.#show({ ABP: 1 });
  }

  /** Software wrote Slot Control. */
  controlWritten(): void {
    this.#isOn = PCI_EXP_SLTCTL.get(this.#control(), 'PCC') === 0;
    this.#setPower();
  }

  #setPower(): void {
    const answers = this.#isOccupied && this.#isOn && this.port.isPresent;
    let changed = false;
    for (const card of this.#cards()) {
      // Virtual functions come and go with their physical function.
      if (card.isPresent === answers || card.description.physfn !== undefined) continue;
      changed = true;
      card.reset();
      card.isPresent = answers;
    }
    this.#show(changed ? { DLLSC: 1 } : {});
    for (const slot of this.#inner()) slot.#setPower();
  }

  /** Status as it is now, with these changes latched. */
  #show(changes: { readonly ABP?: 1; readonly PDC?: 1; readonly DLLSC?: 1 }): void {
    this.#setControl({ ...changes, PDS: this.#isOccupied ? 1 : 0 });
    const link = [this.port.configRead(this.#at + PCI_EXP_LNKCTL.offset, 4)];
    PCI_EXP_LNKCTL.set(link, 'DLLLA', this.#isOccupied && this.#isOn ? 1 : 0);
    this.port.show(this.#at + PCI_EXP_LNKCTL.offset, link[0] ?? 0);
  }

  #control(): [number] {
    return [this.port.configRead(this.#at + PCI_EXP_SLTCTL.offset, 4)];
  }

  #setControl(fields: Partial<Record<'ABP' | 'PDC' | 'DLLSC' | 'PDS' | 'PCC' | 'PIC' | 'AIC', number>>): void {
    const word = this.#control();
    for (const [name, value] of Object.entries(fields)) PCI_EXP_SLTCTL.set(word, name as 'PDS', value);
    this.port.show(this.#at + PCI_EXP_SLTCTL.offset, word[0]);
  }
}

const INDICATOR_ON = 1;
const INDICATOR_OFF = 3;
