/** Data of a driver's own that a caller hands over with an ioctl. */
import { EFAULT, EINVAL } from '../../uapi/errno.js';
import type { SyscallContext } from '../files.js';
import type { UserDomainData } from '../iommu/domain.js';

/** `struct iommu_user_data`: nothing is read before the driver asks. */
export function userData(ctx: SyscallContext, type: number, address: bigint, lengthBytes: number): UserDomainData {
  return {
    type,
    copy: (wanted, minimumBytes, sizeBytes): Uint8Array | number => {
      if (type !== wanted || lengthBytes < minimumBytes || lengthBytes > sizeBytes) return -EINVAL;
      const bytes = ctx.copy_from_user(address, lengthBytes);
      if (bytes === undefined) return -EFAULT;
      const whole = new Uint8Array(sizeBytes);
      whole.set(bytes);
      return whole;
    },
  };
}
