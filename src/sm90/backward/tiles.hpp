// The backward kernel's tiles: the only place that knows their sizes.
#pragma once

#include <cstdint>

#include "problem/dtype.hpp"
#include "problem/host_device.hpp"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// Two consumer warpgroups have 64 keys each, and walk the queries that see them in steps of 64.
inline constexpr int32_t kBackwardConsumers = 2;
inline constexpr int32_t kBackwardKeys = kBackwardConsumers * kWarpgroupRows;
inline constexpr int32_t kBackwardQueries = 64;
inline constexpr int32_t kBackwardThreads = (kBackwardConsumers + 1) * kWarpgroupThreads;

// The kernels before and after it.
inline constexpr int32_t kPrepareThreads = 256;
inline constexpr int32_t kListCtas = 4;  // that list the tasks of a sequence
inline constexpr int32_t kFinishThreads = kBackwardConsumers * kWarpgroupThreads;

// Tasks that one producer warp has published and others still read (shared.cuh).
inline constexpr int32_t kTaskSlots = 4;

// Head dimensions that are smaller than the tile's are filled up with zeros by the copy engine.
struct BackwardTile {
    int32_t head_dim;       // columns of Q and K
    int32_t head_dim_v;     // of V and dO
    int32_t key_buffers;    // K tiles in shared memory: the next task's is loaded while this one is computed
    int32_t query_buffers;  // Q tiles, ahead of the products
    int32_t dout_buffers;   // dO tiles
    int32_t producer_registers, consumer_registers;  // a thread
    // One kernel for dK and dV and another for dQ (wide_keys.cuh, wide_queries.cuh), not one for all. Its buffers of Q
    // are those of dO too.
    bool is_wide = false;

    // V tiles of the wide kernel of dQ.
    FOVEAL_HOST_DEVICE constexpr int32_t value_buffers() const { return head_dim_v <= 128 ? 2 : 1; }

    // One kernel for each of the three (widest.cuh).
    FOVEAL_HOST_DEVICE constexpr bool is_widest() const { return head_dim > 256; }

    FOVEAL_HOST_DEVICE constexpr int32_t key_elements() const { return kBackwardKeys * head_dim; }
    FOVEAL_HOST_DEVICE constexpr int32_t value_elements() const { return kBackwardKeys * head_dim_v; }
    FOVEAL_HOST_DEVICE constexpr int32_t query_elements() const { return kBackwardQueries * head_dim; }
    FOVEAL_HOST_DEVICE constexpr int32_t dout_elements() const { return kBackwardQueries * head_dim_v; }
    // Columns of dQ that a warpgroup computes, and its fp32 sums of one step.
    FOVEAL_HOST_DEVICE constexpr int32_t dq_columns() const { return head_dim / kBackwardConsumers; }
    FOVEAL_HOST_DEVICE constexpr int32_t dq_elements() const { return kBackwardQueries * dq_columns(); }
};

FOVEAL_HOST_DEVICE constexpr int32_t shared_bytes(const BackwardTile& tile) {
    constexpr int32_t kBarriersAndTasks = 1024;
    constexpr int32_t kRowBytes = kBackwardQueries * 4;  // of -lse or -delta
    return 2 * (tile.key_elements() * tile.key_buffers + tile.value_elements() +
                tile.query_elements() * tile.query_buffers + tile.dout_elements() * tile.dout_buffers +
                kBackwardKeys * kBackwardQueries) +
           4 * kBackwardConsumers * tile.dq_elements() + kRowBytes * (tile.query_buffers + tile.dout_buffers) +
           kBarriersAndTasks;
}

// The wide kernels: 64 keys, or 64 queries for each of two warpgroups.
inline constexpr int32_t kWideKeys = 64;
inline constexpr int32_t kWideQueries = kBackwardConsumers * kWarpgroupRows;
FOVEAL_HOST_DEVICE constexpr int32_t wide_shared_bytes(const BackwardTile& tile) {
    constexpr int32_t kBarriersAndTask = 1024;
    const int32_t both = 2 * kWarpgroupRows * (tile.head_dim + tile.head_dim_v);  // a tile of either
    // K, V and stages of Q and dO, P, -lse and -delta; or Q and dO of both warpgroups, and buffers of K and V.
    const int32_t of_keys =
        both * (1 + tile.query_buffers) + 4 * kWideKeys * kBackwardQueries + tile.query_buffers * 8 * kBackwardQueries;
    const int32_t of_queries =
        both * kBackwardConsumers +
        2 * kWideKeys * (tile.head_dim * tile.key_buffers + tile.head_dim_v * tile.value_buffers());
    return (of_keys > of_queries ? of_keys : of_queries) + kBarriersAndTask;
}

// The widest: 64 keys or 64 queries. They have the options too, of all heads wider than 128.
enum class WidestGradient : int32_t { dk, dv, dq };
inline constexpr int32_t kWidestGradients = 3;
inline constexpr int32_t kWidestSharedBytes = kMaxSharedBytes;

// Indices into kBackwardTiles.
enum BackwardTileIndex : int32_t {
    kBackwardD64,
    kBackwardD128,
    kBackwardD192,  // with values of 128
    kBackwardD256,
    kBackwardD512,
    kBackwardTileCount
};

// In ascending order: a problem gets the first that is large enough.
inline constexpr BackwardTile kBackwardTiles[kBackwardTileCount] = {
    //  d, d_v, key_buffers, query_buffers, dout_buffers, registers
    {64, 64, 2, 4, 4, 24, 240},          //
    {128, 128, 2, 3, 2, 24, 240},        //
    {192, 128, 2, 3, 3, 24, 240, true},  //
    {256, 256, 2, 2, 2, 24, 240, true},  //
    {512, 512, 1, 1, 1, 24, 240, true},
};

// setmaxnreg deals out what the launch was given: a multiple of 8 registers a thread.
constexpr bool fits_sm(const BackwardTile& tile) {
    constexpr int32_t kGiven = kRegistersPerSm / kBackwardThreads / 8 * 8 * kBackwardThreads;
    const int32_t bytes = tile.is_widest() ? kWidestSharedBytes
                          : tile.is_wide   ? wide_shared_bytes(tile)
                                           : shared_bytes(tile);
    return bytes <= kMaxSharedBytes &&
           kWarpgroupThreads * (tile.producer_registers + kBackwardConsumers * tile.consumer_registers) <= kGiven;
}
static_assert([] {
    for (const BackwardTile& tile : kBackwardTiles)
        if (!fits_sm(tile)) return false;
    return true;
}());

// What a kernel can do beyond a positive scale and a window.
enum class BackwardVariant : int32_t {
    plain,
    options,          // every option of the scores (scores.cuh), chunks and any scale
    dropout,          // dropout alone: of the wide kernels (of the others it would spill, d 128)
    dropout_options,  // and every option
};
inline constexpr int32_t kBackwardVariants = 4;
FOVEAL_HOST_DEVICE constexpr bool has_options(BackwardVariant variant) {
    return variant == BackwardVariant::options || variant == BackwardVariant::dropout_options;
}
FOVEAL_HOST_DEVICE constexpr bool drops_weights(BackwardVariant variant) {
    return variant == BackwardVariant::dropout || variant == BackwardVariant::dropout_options;
}

// What the kernel is instantiated for.
struct BackwardConfig {
    DType dtype;
    BackwardTile tile;
    BackwardVariant variant;

    FOVEAL_HOST_DEVICE constexpr bool has_options() const { return sm90::has_options(variant); }
    FOVEAL_HOST_DEVICE constexpr bool drops_weights() const { return sm90::drops_weights(variant); }
};

// The same as a type: nvcc 13.0 writes host stubs that do not compile for a __global__ template whose argument is a
// structure.
template <DType kType, int32_t kTileIndex, BackwardVariant kVariant = BackwardVariant::plain>
struct BackwardInstance {
    static constexpr BackwardConfig kConfig{kType, kBackwardTiles[kTileIndex], kVariant};
};

}  // namespace foveal::sm90
