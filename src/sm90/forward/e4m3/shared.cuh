// The shared memory of the forward kernel over e4m3.
#pragma once

#include <cstdint>

#include "sm90/forward/balance.cuh"
#include "sm90/forward/e4m3/tiles.hpp"
#include "sm90/forward/set_up.cuh"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/work.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

FOVEAL_HOST_DEVICE constexpr WorkTraits work_traits_of(const E4m3Config& config) {
    return {config.walk().rows(), config.walk().keys, true, true, false};
}

// What a tile's scores and its output are multiplied by.
struct TileFactors {
    float score_log2;  // scale * log2(e), and the descales of q and k
    float out;         // v's
};

template <E4m3Config kConfig>
struct E4m3Shared {
    static constexpr ForwardTile kTile = kConfig.walk();
    static constexpr int32_t kOnesBytes = 8 * kPanelRowBytes;
    alignas(1024) uint8_t q[kTile.query_buffers][kTile.query_tiles()][kWarpgroupRows * kE4m3Channels];
    uint8_t k[kTile.stages][kE4m3Keys * kE4m3Channels];
    uint8_t v[kE4m3Landings][kE4m3Keys * kE4m3Channels];                  // as it comes
    uint8_t transposed_v[kTile.stages][kConfig.rows_of_v() * kE4m3Keys];  // and rows of ones
    uint16_t out[kTile.consumers][kTile.staged_panels * kWarpgroupRows * kPanelColumns];
    Ring<kTile.query_buffers, kTile.query_tiles()> q_ring;
    Ring<kTile.stages> k_ring, transposed_ring;
    Ring<kE4m3Landings> v_ring;
    Ring<kWorkSlots> work_ring;
    Work work[kWorkSlots];
    TileFactors factors[kWorkSlots];
    Segment segments[kWorkSlots][kTile.segments()];
    RankedTiles ranked_tiles;
};

// By one thread.
template <E4m3Config kConfig>
__device__ __forceinline__ void initialise_barriers(E4m3Shared<kConfig>& shared) {
    constexpr ForwardTile kTile = kConfig.walk();
    constexpr uint32_t kConsumerWarps = kTile.consumers * kWarpgroupWarps;
    constexpr uint32_t kWorkReaders = (1 + kTransposers) * kWarpThreads + kTile.consumers * kWarpgroupThreads;
    for (int32_t i = 0; i < kTile.query_buffers; ++i) shared.q_ring.initialise(i, 1, kWarpgroupWarps);
    for (int32_t i = 0; i < kTile.stages; ++i) {
        shared.k_ring.initialise(i, 1, kConsumerWarps);
        shared.transposed_ring.initialise(i, kTransposers, kConsumerWarps);
    }
    for (int32_t i = 0; i < kE4m3Landings; ++i) shared.v_ring.initialise(i, 1, kTransposers);
    for (int32_t i = 0; i < kWorkSlots; ++i) shared.work_ring.initialise(i, kWarpThreads, kWorkReaders);
    ptx::fence_mbarrier_init();
}

// By the consumers.
template <E4m3Config kConfig>
__device__ __forceinline__ void fill_ones(E4m3Shared<kConfig>& shared) {
    constexpr uint32_t kFourOnes = 0x38383838;
    constexpr int32_t kWords = E4m3Shared<kConfig>::kOnesBytes / 4, kTile = kConfig.head_dim * kE4m3Keys / 4;
    constexpr int32_t kThreads = kConfig.walk().consumers * kWarpgroupThreads;
    for (int32_t stage = 0; stage < kConfig.walk().stages; ++stage)
        for (int32_t i = static_cast<int32_t>(threadIdx.x) % kThreads; i < kWords; i += kThreads)
            reinterpret_cast<uint32_t*>(shared.transposed_v[stage])[kTile + i] = kFourOnes;
    ptx::fence_proxy_async();
}

template <E4m3Config kConfig>
__device__ __forceinline__ void await_set_up() {
    ptx::barrier_sync(kSetUpBarrier, kConfig.walk().threads());
    await_kernel_before();
}

}  // namespace foveal::sm90
