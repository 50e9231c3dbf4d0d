/** Recorded operations on queues, on pages a vIOMMU offers, and on the VFIO ioctls of /dev/iommu. */
import type { FieldSpecs, Struct } from '../layout/struct.js';
import * as u from '../uapi/iommufd.js';
import * as v from '../uapi/vfio.js';
import { ARGUMENT_ADDRESS, type RecordedMachine } from './linux-machine.js';
import {
  hex,
  integer,
  pointer,
  returned,
  shown,
  small,
  structCall,
  type Answer,
  type Json,
  type JsonFields,
  type Operation,
} from './linux-operations.js';

/** A queue's descriptor, which the recording names by its object. */
function remember(machine: RecordedMachine, id: unknown, fd: unknown): void {
  machine.eventFds.set(Number(id), Number(fd));
}

const faultQueueAlloc = structCall(u.IOMMU_FAULT_QUEUE_ALLOC, {
  outputs: ['out_fault_id'],
  collect: (machine, values) => {
    remember(machine, values['out_fault_id'], values['out_fault_fd']);
    return {};
  },
});

const veventqAlloc = structCall(u.IOMMU_VEVENTQ_ALLOC, {
  outputs: ['out_veventq_id'],
  collect: (machine, values) => {
    remember(machine, values['out_veventq_id'], values['out_veventq_fd']);
    return {};
  },
});

function readQueue(machine: RecordedMachine, id: Json | undefined, count: number): Uint8Array | number {
  const file = machine.process.files.get(machine.eventFds.get(small(id)) ?? -1);
  return file === undefined ? -9 : machine.run(file.read(machine.ctx, count));
}

function readFault(machine: RecordedMachine, input: JsonFields): Answer {
  const bytes = readQueue(machine, input['fault_id'], small(input['count']));
  if (typeof bytes === 'number') return { ret: returned(bytes) };
  const size = u.iommu_hwpt_pgfault.sizeBytes;
  const faults = Array.from({ length: Math.floor(bytes.length / size) }, (_, i): Json => {
    const { flags, dev_id, pasid, grpid, perm, addr, length, cookie } = u.iommu_hwpt_pgfault.decode(
      bytes.subarray(i * size),
    );
    return { flags, dev_id, pasid, grpid, perm, addr: shown(addr), length, cookie };
  });
  return { ret: 'OK', out: { bytes: bytes.length, faults } };
}

function writeFault(machine: RecordedMachine, input: JsonFields): Answer {
  const file = machine.process.files.get(machine.eventFds.get(small(input['fault_id'])) ?? -1);
  if (file === undefined) return { ret: 'EBADF' };
  const response = u.iommu_hwpt_page_response.encode({ cookie: small(input['cookie']), code: small(input['code']) });
  const bytes = new Uint8Array(small(input['count']));
  bytes.set(response.subarray(0, Math.min(bytes.length, response.length)));
  const result = machine.run(file.write(machine.ctx, bytes));
  return result < 0 ? { ret: returned(result) } : { ret: 'OK', out: { bytes: result } };
}

function readVevent(machine: RecordedMachine, input: JsonFields): Answer {
  const file = machine.process.files.get(machine.eventFds.get(small(input['veventq_id'])) ?? -1);
  if (file === undefined) return { ret: 'EBADF' };
  const readable_before = file.poll() ? 1 : 0;
  const bytes = machine.run(file.read(machine.ctx, small(input['count'])));
  if (typeof bytes === 'number') return { ret: returned(bytes), out: { readable_before } };
  return { ret: 'OK', out: { readable_before, data: Buffer.from(bytes).toString('hex') } };
}

function closeEventFd(machine: RecordedMachine, input: JsonFields): Answer {
  const fd = machine.eventFds.get(small(input['id']));
  if (fd === undefined) return { ret: 'EBADF' };
  machine.eventFds.delete(small(input['id']));
  return { ret: returned(machine.run(machine.process.files.close(fd))) };
}

function mmapIommufd(machine: RecordedMachine, input: JsonFields): Answer {
  const { process } = machine;
  const file = process.files.get(machine.iommufd);
  const [offset, length] = [integer(input['offset']), integer(input['length'])];
  const mapping = file === undefined ? -9 : machine.run(file.mmap(offset, length, small(input['shared']) !== 0));
  if (typeof mapping === 'number') return { ret: returned(mapping) };
  const address = process.mm.mmapFile(0n, length, 3, mapping);
  if (typeof address === 'number') return { ret: returned(address) };
  const bytes = machine.load(address, 4);
  process.mm.munmap(address, length);
  return { ret: 'OK', out: { first_u32: new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) } };
}

/** A VFIO ioctl whose argument is a value. */
function valueCall(command: number, field?: string): Operation {
  return (machine, input) => {
    const result = machine.ioctl(machine.iommufd, command, BigInt(field === undefined ? 0 : small(input[field])));
    if (result < 0) return { ret: returned(result) };
    return field === 'type' ? { ret: 'OK' } : { ret: 'OK', out: { value: result } };
  };
}

function vfioStruct<F extends FieldSpecs>(
  machine: RecordedMachine,
  command: number,
  struct: Struct<F>,
  values: Record<string, unknown>,
): { readonly result: number; readonly bytes: Uint8Array } {
  const bytes = (struct as unknown as Struct<FieldSpecs>).encode(values as never);
  machine.store(ARGUMENT_ADDRESS, bytes);
  const result = machine.ioctl(machine.iommufd, command, ARGUMENT_ADDRESS);
  return { result, bytes: machine.load(ARGUMENT_ADDRESS, bytes.length) };
}

function mapDma(machine: RecordedMachine, input: JsonFields): Answer {
  const values = {
    argsz: small(input['argsz']),
    flags: small(input['flags']),
    vaddr: pointer(input['vaddr']),
    iova: integer(input['iova']),
    size: integer(input['size']),
  };
  return { ret: returned(vfioStruct(machine, v.VFIO_IOMMU_MAP_DMA.number, v.vfio_iommu_type1_dma_map, values).result) };
}

function unmapDma(machine: RecordedMachine, input: JsonFields): Answer {
  const values = {
    argsz: small(input['argsz']),
    flags: small(input['flags']),
    iova: integer(input['iova']),
    size: integer(input['size']),
  };
  const { result, bytes } = vfioStruct(machine, v.VFIO_IOMMU_UNMAP_DMA.number, v.vfio_iommu_type1_dma_unmap, values);
  return { ret: returned(result), out: { size: shown(v.vfio_iommu_type1_dma_unmap.decode(bytes).size) } };
}

/** Bytes of a GET_INFO that are looked at. */
const INFO_BYTES = 4096;

function getInfo(machine: RecordedMachine, input: JsonFields): Answer {
  const argsz = small(input['argsz']);
  const area = new Uint8Array(INFO_BYTES);
  new DataView(area.buffer).setUint32(0, argsz, true);
  machine.store(ARGUMENT_ADDRESS, area);
  const result = machine.ioctl(machine.iommufd, v.VFIO_IOMMU_GET_INFO.number, ARGUMENT_ADDRESS);
  if (result < 0) return { ret: returned(result) };
  const bytes = machine.load(ARGUMENT_ADDRESS, INFO_BYTES);
  const info = v.vfio_iommu_type1_info.decode(bytes);
  const out: Record<string, Json> = {
    argsz: info.argsz,
    flags: info.flags,
    iova_pgsizes: shown(info.iova_pgsizes),
    cap_offset: info.cap_offset,
  };
  const caps: Json[] = [];
  for (let at = info.cap_offset; at !== 0 && at < argsz;) {
    const { id, version, next } = v.vfio_info_cap_header.decode(bytes.subarray(at));
    const cap: Record<string, Json> = { offset: at, id, version, next };
    if (id === v.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)
      cap['avail'] = v.vfio_iommu_type1_info_dma_avail.decode(bytes.subarray(at)).avail;
    if (id === v.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
      const { nr_iovas } = v.vfio_iommu_type1_info_cap_iova_range.decode(bytes.subarray(at));
      cap['ranges'] = Array.from({ length: nr_iovas }, (_, i) => {
        const first = at + v.vfio_iommu_type1_info_cap_iova_range.sizeBytes + i * v.vfio_iova_range.sizeBytes;
        const { start, end } = v.vfio_iova_range.decode(bytes.subarray(first));
        return [shown(start), shown(end)];
      });
    }
    caps.push(cap);
    at = next;
  }
  // Where capabilities found no room for all of them, what lies behind the struct shows which were written.
  const isCut = info.cap_offset === 0 && argsz > v.vfio_iommu_type1_info.sizeBytes;
  const rest = isCut ? { bytes_after_info: hex(bytes.subarray(v.vfio_iommu_type1_info.sizeBytes, argsz)) } : {};
  return { ret: 'OK', out: { ...out, caps, ...rest } };
}

/** Operations by name. */
export const QUEUE_OPERATIONS: readonly (readonly [string, Operation])[] = [
  ['FAULT_QUEUE_ALLOC', faultQueueAlloc],
  ['VEVENTQ_ALLOC', veventqAlloc],
  ['READ_FAULT', readFault],
  ['WRITE_FAULT', writeFault],
  ['READ_VEVENT', readVevent],
  ['CLOSE_EVENT_FD', closeEventFd],
  ['IOMMUFD_MMAP', mmapIommufd],
  ['VFIO_IOAS', (machine, input) => vfioIoas(machine, input)],
  ['VFIO_GET_API_VERSION', valueCall(v.VFIO_GET_API_VERSION)],
  ['VFIO_CHECK_EXTENSION', valueCall(v.VFIO_CHECK_EXTENSION, 'extension')],
  ['VFIO_SET_IOMMU', valueCall(v.VFIO_SET_IOMMU, 'type')],
  ['VFIO_IOMMU_GET_INFO', getInfo],
  ['VFIO_IOMMU_MAP_DMA', mapDma],
  ['VFIO_IOMMU_UNMAP_DMA', unmapDma],
  ['VFIO_IOMMU_DIRTY_PAGES', valueCall(v.VFIO_IOMMU_DIRTY_PAGES.number)],
];

const getIoas = structCall(u.IOMMU_VFIO_IOAS, { outputs: ['ioas_id'] });
const setIoas = structCall(u.IOMMU_VFIO_IOAS);

/** IOMMU_VFIO_IOAS: only a GET has something to say. */
function vfioIoas(machine: RecordedMachine, input: JsonFields): Answer {
  return small(input['op']) === u.IOMMU_VFIO_IOAS_GET ? getIoas(machine, input) : setIoas(machine, input);
}
