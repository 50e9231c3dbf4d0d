/**
 * Ranges that Linux's IOMMU drivers have as constants.
 *
 * Sources: drivers/iommu/intel/iommu.h (IOAPIC_RANGE), amd/iommu.c (MSI_RANGE, HT_RANGE), arm-smmu-v3.h (MSI_IOVA_BASE,
 * MSI_IOVA_LENGTH).
 */

/** Interrupt messages of x86: never translated. */
export const X86_MSI_RANGE = { start: 0xfee0_0000n, last: 0xfeef_ffffn } as const;
/** HyperTransport's special range below 1 TiB (AMD). */
export const HT_RANGE = { start: 0xfd_0000_0000n, last: 0xff_ffff_ffffn } as const;
/** Where Arm's SMMU drivers and virtio-iommu let doorbells be mapped. */
export const MSI_IOVA = { start: 0x800_0000n, last: 0x80f_ffffn } as const;
