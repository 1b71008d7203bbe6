// cp.async.bulk: the copy engine moves contiguous bytes between global and shared memory, or adds them up in global
// memory. Addresses and sizes are multiples of 16 bytes.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk
#pragma once

#include <cstdint>
#include <cuda/ptx>

namespace foveal::sm90::ptx {

// cp.async.bulk.shared.global: `bytes` bytes, which complete on `barrier`.
__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t& barrier) {
    ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_cluster, ::cuda::ptx::space_global, to, from, bytes, &barrier);
}

// cp.async.bulk.global.shared: part of this thread's bulk group.
__device__ __forceinline__ void bulk_store(void* to, const void* from, uint32_t bytes) {
    ::cuda::ptx::cp_async_bulk(::cuda::ptx::space_global, ::cuda::ptx::space_shared, to, from, bytes);
}

// cp.reduce.async.bulk.add.f32: the same, but adds each float to the one in global memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-reduce-async-bulk
__device__ __forceinline__ void bulk_add(float* to, const void* from, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))), "r"(bytes)
                 : "memory");
}

// cp.async.bulk.wait_group: this thread's stores and additions are there.
__device__ __forceinline__ void bulk_wait_group() { ::cuda::ptx::cp_async_bulk_wait_group(::cuda::ptx::n32_t<0>{}); }

}  // namespace foveal::sm90::ptx
