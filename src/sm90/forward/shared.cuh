// The forward kernel's shared memory.
#pragma once

#include <cstdint>

#include "sm90/forward/balance.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"

namespace foveal::sm90 {

inline constexpr int32_t kOnesRows = 16;  // k of one wgmma

template <ForwardConfig kConfig>
struct Shared {
    static constexpr ForwardTile kTile = kConfig.tile;
    alignas(1024) uint16_t q[kTile.query_buffers][kTile.query_tiles()][kWarpgroupRows * kTile.head_dim];
    uint16_t k[kTile.stages][kTile.keys * kTile.head_dim];
    uint16_t v[kTile.stages][kTile.keys * kTile.head_dim_v];
    uint16_t out[kTile.consumers][kTile.staged_panels * kWarpgroupRows * kPanelColumns];
    uint64_t q_full[kTile.query_buffers][kTile.query_tiles()], q_free[kTile.query_buffers][kTile.query_tiles()];
    uint64_t k_full[kTile.stages], k_free[kTile.stages];
    uint64_t v_full[kTile.stages], v_free[kTile.stages];
    uint64_t v_landed;  // a V block that still has rows to be zeroed
    uint64_t work_full[kWorkSlots], work_free[kWorkSlots];
    Work work[kWorkSlots];
    RowGroup row_groups[kWorkSlots][kTile.row_groups()];
    RankedTiles ranked_tiles;
    OwnWork own_work[kWorkSlots][kTile.has_own_blocks() ? kTile.query_tiles() : 1];
    // Beside V, so that the product sums P (product.cuh).
    alignas(kTile.sums_in_product ? 1024 : 2) uint16_t ones[kTile.sums_in_product ? kOnesRows * kPanelColumns : 1];
};

}  // namespace foveal::sm90
