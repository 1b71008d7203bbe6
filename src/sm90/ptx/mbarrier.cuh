// mbarrier: a barrier in shared memory that counts arrivals and, for the copy engine, bytes.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier
#pragma once

#include <cstdint>
#include <cuda/ptx>

namespace foveal::sm90::ptx {

// mbarrier.init: the phase ends after `count` arrivals.
__device__ __forceinline__ void mbarrier_init(uint64_t& barrier, uint32_t count) {
    ::cuda::ptx::mbarrier_init(&barrier, count);
}

// fence.mbarrier_init: makes the inits visible to the copy engine (async proxy) and the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
}

// mbarrier.arrive: one arrival.
__device__ __forceinline__ void mbarrier_arrive(uint64_t& barrier) { ::cuda::ptx::mbarrier_arrive(&barrier); }

// mbarrier.arrive.expect_tx: one arrival, and `bytes` more that copies will bring.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t& barrier, uint32_t bytes) {
    ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta, ::cuda::ptx::space_shared,
                                           &barrier, bytes);
}

// mbarrier.try_wait.parity, until the phase of this parity has ended. A new barrier's phase "before the first" has
// parity 1 and has ended.
__device__ __forceinline__ void mbarrier_wait(uint64_t& barrier, uint32_t parity) {
    while (!::cuda::ptx::mbarrier_try_wait_parity(&barrier, parity)) {
    }
}

}  // namespace foveal::sm90::ptx
