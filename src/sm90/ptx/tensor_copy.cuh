// cp.async.bulk.tensor: the copy engine (TMA) moves boxes of a tensor between global and shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cuda/ptx>

namespace foveal::sm90::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// prefetch.tensormap: the first copy by this map then need not wait for it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prefetch-prefetchu
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// cp.async.bulk.tensor.4d.shared.global: the box at (column, row, head, batch); its bytes complete on `barrier`.
__device__ __forceinline__ void tensor_load(void* box, const CUtensorMap& map, uint64_t& barrier, int32_t column,
                                            int32_t row, int32_t head, int32_t batch) {
    const int32_t at[4] = {column, row, head, batch};
    ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, box, &map, at, &barrier);
}

// cp.async.bulk.tensor.4d.global.shared: parts of the box that lie outside the tensor are not written.
__device__ __forceinline__ void tensor_store(const void* box, const CUtensorMap& map, int32_t column, int32_t row,
                                             int32_t head, int32_t batch) {
    const int32_t at[4] = {column, row, head, batch};
    ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_global, ::cuda::ptx::space_shared, &map, at, box);
}

// cp.async.bulk.commit_group: closes this thread's group of stores.
__device__ __forceinline__ void bulk_commit_group() { ::cuda::ptx::cp_async_bulk_commit_group(); }

// cp.async.bulk.wait_group.read: this thread's stores have read their shared memory.
__device__ __forceinline__ void bulk_wait_group_read() {
    ::cuda::ptx::cp_async_bulk_wait_group_read(::cuda::ptx::n32_t<0>{});
}

// fence.proxy.async: this thread's ordinary shared-memory writes become visible to the copy engine and to wgmma.
__device__ __forceinline__ void fence_proxy_async() { ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared); }

}  // namespace foveal::sm90::ptx
