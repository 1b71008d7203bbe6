// The forward kernel's shared memory.
#pragma once

#include <cstdint>

#include "sm90/forward/balance.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

inline constexpr int32_t kOnesRows = 16;  // rows of ones: one kstep multiplies so many

// What the search for tiles (work.cuh) needs of the kernel's config.
FOVEAL_HOST_DEVICE constexpr WorkTraits work_traits_of(const ForwardConfig& config) {
    return {config.tile.rows(), config.tile.keys, !config.tile.dense_only, config.has_options(), config.any_keys};
}

// The CTA's named barriers, of which the hardware has 16. Barrier 0 joins all threads when the CTA has set itself up
// (it is also that of __syncthreads()). Then each consumer warpgroup has one at which it waits for its turn at the
// tensor cores, and one at which its four warps vote.
enum NamedBarrier : int32_t { kSetUpBarrier = 0, kFirstTurnBarrier = 1 };
__device__ __forceinline__ int32_t turn_barrier(int32_t warpgroup) { return kFirstTurnBarrier + warpgroup; }
__device__ __forceinline__ int32_t vote_barrier(int32_t consumers, int32_t warpgroup) {
    return kFirstTurnBarrier + consumers + warpgroup;
}

template <ForwardConfig kConfig>
struct Shared {
    static constexpr ForwardTile kTile = kConfig.tile;
    alignas(1024) uint16_t q[kTile.query_buffers][kTile.query_tiles()][kWarpgroupRows * kTile.head_dim];
    uint16_t k[kTile.stages][kTile.keys * kTile.head_dim];
    uint16_t v[kTile.stages][kTile.keys * kTile.head_dim_v];
    uint16_t out[kTile.consumers][kTile.staged_panels * kWarpgroupRows * kPanelColumns];
    Ring<kTile.query_buffers, kTile.query_tiles()> q_ring;
    Ring<kTile.stages> k_ring, v_ring;
    uint64_t v_landed;  // a V block that still has rows to be zeroed
    Ring<kWorkSlots> work_ring;
    Work work[kWorkSlots];
    Segment segments[kWorkSlots][kTile.segments()];
    RankedTiles ranked_tiles;
    OwnWork own_work[kWorkSlots][kTile.has_own_blocks() ? kTile.query_tiles() : 1];
    // Beside V, so that the product sums P (product.cuh).
    alignas(kTile.sums_in_product ? 1024 : 2) uint16_t ones[kTile.sums_in_product ? kOnesRows * kPanelColumns : 1];
};

}  // namespace foveal::sm90
