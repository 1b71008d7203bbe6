// The forward kernel's tiles: the only place that knows their sizes.
#pragma once

#include <cstdint>

#include "problem.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kWarpgroupThreads = 128;
inline constexpr int32_t kWarpgroupRows = 64;  // M of every wgmma
inline constexpr int32_t kWarpRows = 16;       // of a warpgroup's 64, in each of its four warps
inline constexpr int32_t kPanelColumns = 64;   // 16-bit columns of a 128-byte swizzled row
inline constexpr int32_t kQueryBuffers = 2;    // the next tile's Q is loaded while this one is computed
inline constexpr int32_t kRegistersPerSm = 65536;
inline constexpr int32_t kMaxSharedBytes = 232448;

struct ForwardTile {
    int32_t head_dim;            // d == d_v
    int32_t consumers;           // warpgroups that compute, 64 query rows each
    int32_t keys;                // keys a K/V block
    int32_t stages;              // K blocks, and V blocks, in flight
    int32_t first_chunks;        // 16-key chunks of P*V whose registers are free before the rest has run
    int32_t producer_registers;  // a thread
    int32_t consumer_registers;  // a thread

    FOVEAL_HOST_DEVICE constexpr int32_t rows() const { return consumers * kWarpgroupRows; }
    FOVEAL_HOST_DEVICE constexpr int32_t threads() const { return (consumers + 1) * kWarpgroupThreads; }
    FOVEAL_HOST_DEVICE constexpr int32_t block_bytes() const { return keys * head_dim * 2; }
    FOVEAL_HOST_DEVICE constexpr int32_t rows_bytes() const {
        return kWarpgroupRows * head_dim * 2;
    }  // one warpgroup's Q or O
};

// Of a CTA: Q and K and V and O, barriers, published tiles. forward.cuh checks that its struct is no larger.
FOVEAL_HOST_DEVICE constexpr int32_t shared_bytes(const ForwardTile& tile) {
    constexpr int32_t kBarriersAndWork = 1024;
    return (kQueryBuffers + 1) * tile.consumers * tile.rows_bytes() + 2 * tile.stages * tile.block_bytes() +
           kBarriersAndWork;
}

struct ForwardTileEntry {
    ForwardTile tile;
    bool plain, lse;         // used without, and with, the log-sum-exp
    const char* limited_by;  // the resource that keeps it from being larger
};

inline constexpr ForwardTileEntry kForwardTiles[] = {
    {{128, 2, 128, 2, 1, 40, 232}, true, true, "shared memory: Q 64, K 64, V 64 and O 32 of 227 KiB"},
    {{64, 3, 128, 4, 1, 32, 160}, true, false, "registers: 3 * 128 * 160 + 128 * 32 = 65536"},
    {{64, 2, 128, 5, 1, 40, 232}, false, true, "registers: the unrounded sums need 4 more than 160"},
};

// What the kernel is instantiated for.
struct ForwardConfig {
    DType dtype;
    ForwardTile tile;
    bool lse;
};

// The same as a type: nvcc 13.0 writes host stubs that do not compile for a __global__ template whose argument is a
// structure.
template <DType kType, int32_t kTileIndex, bool kLse>
struct ForwardInstance {
    static constexpr ForwardConfig kConfig{kType, kForwardTiles[kTileIndex].tile, kLse};
};

}  // namespace foveal::sm90
