// The tiles of the forward kernel over e4m3: the only place that knows their sizes.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/forward/e4m3/key_order.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/warpgroup.hpp"

#ifndef E4_PROD
#define E4_PROD 40
#endif
namespace foveal::sm90 {

// A row of Q, K or V is one panel: 128 channels of a byte. Fewer are filled up with zeros by the copy engine.
inline constexpr int32_t kE4m3Channels = kPanelRowBytes;
inline constexpr int32_t kE4m3Keys = 128;    // a K/V block; those of a row of V's transpose, a panel wide
inline constexpr int32_t kE4m3Kstep = 32;    // bytes that one wgmma multiplies of a row
inline constexpr int32_t kE4m3Landings = 2;  // V blocks that have come and are not transposed yet
inline constexpr int32_t kTransposers = 2;   // warps that transpose V, each one half of its channels
// Channels of O in one product of P and V: its accumulators are then added to O's in fp32. More would need more
// registers than there are.
inline constexpr int32_t kPartChannels = 64;

// What the kernel is instantiated for.
struct E4m3Config {
    DType out;
    int32_t head_dim;  // of q, k and v, at most: 64 or 128
    bool has_lse;

    // The walk through the tiles is the 16-bit kernel's (forward/walk.hpp), and so is their order: the tile of
    // `order_tile` has as many rows and keys. V has eight rows of ones below its transpose, whose products are the sums
    // of P.
    FOVEAL_HOST_DEVICE constexpr ForwardTile walk() const {
        return {.head_dim = head_dim,
                .head_dim_v = head_dim,
                .consumers = 2,
                .takes_turns = true,
                .shares_rows = false,
                .sums_in_product = true,
                .keys = kE4m3Keys,
                .stages = 2,
                .query_buffers = 2,
                .staged_panels = head_dim / kPanelColumns,
                .first_ksteps = 0,
                .early_ksteps = 0,
                .producer_registers = E4_PROD,
                .consumer_registers = 232};
    }
    FOVEAL_HOST_DEVICE constexpr int32_t parts() const { return head_dim / kPartChannels; }
    FOVEAL_HOST_DEVICE constexpr int32_t rows_of_v() const { return head_dim + 8; }  // of its transpose
    FOVEAL_HOST_DEVICE constexpr int32_t accumulators() const { return rows_of_v() / 2; }
};

constexpr ForwardTileIndex order_tile(int32_t head_dim) { return head_dim == 64 ? kTileD64Options : kTileD128; }

static_assert([] {
    for (const int32_t head_dim : {64, 128}) {
        const ForwardTile &walk = E4m3Config{DType::bf16, head_dim, false}.walk(),
                          &order = kForwardTiles[order_tile(head_dim)].tile;
        if (walk.rows() != order.rows() || walk.keys != order.keys) return false;
    }
    return true;
}());

FOVEAL_HOST_DEVICE constexpr int32_t shared_bytes(const E4m3Config& config) {
    constexpr int32_t kBarriersAndWork = 4096;
    const ForwardTile walk = config.walk();
    return (walk.query_buffers * walk.rows() + (walk.stages + kE4m3Landings) * kE4m3Keys +
            walk.stages * config.rows_of_v()) *
               kPanelRowBytes +
           walk.consumers * walk.staging_bytes() + kBarriersAndWork;
}
static_assert(shared_bytes({DType::bf16, 128, true}) <= kMaxSharedBytes);

// The same as a type, as ForwardInstance is.
template <DType kOut, int32_t kHeadDim, bool kLse>
struct E4m3Instance {
    static constexpr E4m3Config kConfig{kOut, kHeadDim, kLse};
};

}  // namespace foveal::sm90
