// How a CTA of the forward kernel sets itself up: what must be in shared memory before anybody waits or computes, and
// the wait for the kernel before.
#pragma once

#include <cstdint>

#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {

// By one thread.
template <ForwardConfig kConfig>
__device__ __forceinline__ void initialise_barriers(Shared<kConfig>& shared) {
    constexpr ForwardTile kTile = kConfig.tile;
    // wgmma reads Q, K and V for a warp: one lane of each releases them. A tile's Work is read by each thread of the
    // consumers and of the three warps that load.
    constexpr uint32_t kConsumerWarps = kTile.consumers * kWarpgroupWarps;
    constexpr uint32_t kWorkReaders = 3 * 32 + kTile.consumers * kWarpgroupThreads;
    for (int32_t i = 0; i < kTile.query_buffers; ++i)
        shared.q_ring.initialise(i, 1, kTile.shares_rows ? kConsumerWarps : kWarpgroupWarps);
    for (int32_t i = 0; i < kTile.stages; ++i) {
        shared.k_ring.initialise(i, 1, kConsumerWarps);
        shared.v_ring.initialise(i, 1, kConsumerWarps);
    }
    ptx::mbarrier_init(shared.v_landed, 1);
    for (int32_t i = 0; i < kWorkSlots; ++i) shared.work_ring.initialise(i, kWarpThreads, kWorkReaders);
    ptx::fence_mbarrier_init();
}

// By the consumers.
template <ForwardConfig kConfig>
__device__ __forceinline__ void fill_ones(Shared<kConfig>& shared) {
    if constexpr (kConfig.tile.sums_in_product) {
        constexpr int32_t kThreads = kConfig.tile.consumers * kWarpgroupThreads;
        for (int32_t i = static_cast<int32_t>(threadIdx.x) % kThreads; i < kOnesRows * kPanelColumns; i += kThreads)
            shared.ones[i] = Format<kConfig.dtype>::kOneBits;
        ptx::fence_proxy_async();
    }
}

// Until here the kernel may run beside the one before it in the stream, and the one after it beside this one's end
// (programmatic dependent launch). Global memory is touched after the wait only; what comes after this kernel may start
// only when all before it has ended. To wait again costs nothing.
__device__ __forceinline__ void await_kernel_before() {
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
}

// Every warp, once: until the barriers, and what else is set up in shared memory, are there, and the kernel before has
// ended.
template <ForwardConfig kConfig>
__device__ __forceinline__ void await_set_up() {
    ptx::barrier_sync(kSetUpBarrier, kConfig.tile.threads());
    await_kernel_before();
}

}  // namespace foveal::sm90
