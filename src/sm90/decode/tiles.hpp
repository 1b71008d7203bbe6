// The decode kernel's tiles: the only place that knows their sizes.
#pragma once

#include <cstdint>

#include "problem/dtype.hpp"
#include "sm90/decode/split.hpp"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// A CTA is a warpgroup that computes and one that loads. It takes blocks of 64 keys of one KV head, of which each
// computing warp has a strip of 16, and all queries that share the head, which are the columns of the products.
// Of the warpgroup that loads, the first warp finds the pieces; the second asks for boxes, or three copy rows.
inline constexpr int32_t kDecodeThreads = 2 * kWarpgroupThreads;
inline constexpr int32_t kRowLoaderWarps = 3, kRowLoaderThreads = kRowLoaderWarps * kWarpThreads;
inline constexpr int32_t kStripKeys = kBlockKeys / kWarpgroupWarps;
inline constexpr int32_t kOctetColumns = 8;  // of every mma (its N)

// Head dimensions that are no multiple of a panel, or smaller than the tile's, are filled up with zeros.
struct DecodeTile {
    int32_t head_dim;
    int32_t columns;            // queries times query heads of a KV head
    int32_t slots;              // blocks of K or V in flight
    int32_t works;              // pieces that are announced ahead, with their Q
    int32_t levels;             // of the tree over a sequence's leaves (split.hpp)
    int32_t ctas;               // on an SM at once
    bool queries_in_registers;  // else they are read from shared memory for every block
    int32_t key_bytes = 2;      // of an element of K or V: of q's type, or 1: e4m3, to be dequantised

    FOVEAL_HOST_DEVICE constexpr int32_t octets() const { return (columns + kOctetColumns - 1) / kOctetColumns; }
    // A block of K, or of V, takes so many of the ring's slots, each of which has so many of its channels.
    FOVEAL_HOST_DEVICE constexpr int32_t slot_channels() const { return head_dim < 256 ? head_dim : 256; }
    FOVEAL_HOST_DEVICE constexpr int32_t slots_of_block() const { return head_dim / slot_channels(); }
    // As panels of so many bytes a row: 128, or all where there are fewer.
    FOVEAL_HOST_DEVICE constexpr int32_t panel_row_bytes() const {
        const int32_t row = slot_channels() * key_bytes;
        return row < kPanelRowBytes ? row : kPanelRowBytes;
    }
    FOVEAL_HOST_DEVICE constexpr int32_t panel_channels() const { return panel_row_bytes() / key_bytes; }
    FOVEAL_HOST_DEVICE constexpr int32_t slot_panels() const { return slot_channels() / panel_channels(); }
    FOVEAL_HOST_DEVICE constexpr bool dequantises() const { return key_bytes == 1; }
    FOVEAL_HOST_DEVICE constexpr int32_t slot_ksteps() const { return slot_channels() / 16; }
    FOVEAL_HOST_DEVICE constexpr int32_t ksteps() const { return head_dim / 16; }
    FOVEAL_HOST_DEVICE constexpr int32_t strip_columns() const {  // that are exchanged at once
        const int32_t most = head_dim > 256 ? kOctetColumns / 2 : kOctetColumns;
        return columns < most ? columns : most;
    }
    // Of a node a warp has every fourth column, and each of its threads so many neighbouring values of it.
    FOVEAL_HOST_DEVICE constexpr int32_t warp_columns() const { return columns / kWarpgroupWarps; }
    FOVEAL_HOST_DEVICE constexpr int32_t values() const { return head_dim / kWarpThreads; }
    // Nodes that a thread reads at once when it puts a sequence together: 128 registers, but no more than lanes.
    FOVEAL_HOST_DEVICE constexpr int32_t nodes_at_once() const {
        const int32_t nodes = 128 / (warp_columns() * values());
        return nodes < kWarpThreads ? nodes : kWarpThreads;
    }

    FOVEAL_HOST_DEVICE constexpr int32_t slot_bytes() const { return kBlockKeys * slot_channels() * key_bytes; }
    FOVEAL_HOST_DEVICE constexpr int32_t query_bytes() const { return octets() * kOctetColumns * head_dim * 2; }
    // A node's values, then four floats for each column: its reference, two sums, and nothing.
    FOVEAL_HOST_DEVICE constexpr int32_t node_floats() const {
        const int32_t floats = columns * head_dim + 4 * columns;
        return (floats + 31) / 32 * 32;  // whole lines of 128 bytes
    }
};

// What a CTA needs: blocks, Q, strips, stack, and the rest. kernel.cuh checks that its struct is no larger.
FOVEAL_HOST_DEVICE constexpr int32_t shared_bytes(const DecodeTile& tile) {
    constexpr int32_t kRest = 2048;  // barriers, announced pieces, the map of nodes, columns
    const int32_t strips = kWarpgroupWarps * tile.strip_columns() * (tile.head_dim + 4 + 4) * 4;
    const int32_t stack = tile.levels * tile.columns * tile.head_dim * 4;
    const int32_t bytes = tile.slots * tile.slot_bytes() + tile.works * tile.query_bytes() + strips + stack + kRest;
    if (!tile.dequantises()) return bytes;
    constexpr int32_t kAlignment = 1024;  // of the slots, and so of all
    return (bytes + tile.slots * kBlockKeys * 4 + kAlignment - 1) / kAlignment * kAlignment;
}

// What a kernel can do beyond a positive scale, a window, sinks and the log-sum-exp.
enum class DecodeVariant : int32_t {
    plain,
    options,    // softcap, ALiBi, any scale
    only_loads  // computes nothing: what the copies alone take. Of the benchmark.
};

// Indices into kDecodeTiles.
enum DecodeTileIndex : int32_t {
    kDecodeD64C4,
    kDecodeD64C8,
    kDecodeD64C16,
    kDecodeD128C4,
    kDecodeD128C8,
    kDecodeD128C16,
    kDecodeD256C4,
    kDecodeD256C8,
    kDecodeD256C16,
    kDecodeD512C8,
    kDecodeTileCount
};

// In ascending order: a problem gets the first that is large enough for its head dimensions, its columns and its
// options; one with more columns than the last for its head dimensions is cut.
struct DecodeTileEntry {
    DecodeTile tile;
    bool plain, options;     // the variants that it is used for
    const char* limited_by;  // the resource that keeps the ring from being larger

    constexpr bool serves(DecodeVariant variant) const {
        return (variant == DecodeVariant::plain && plain) || (variant == DecodeVariant::options && options);
    }
};

// clang-format off
inline constexpr DecodeTileEntry kDecodeTiles[kDecodeTileCount] = {
    //  d, columns, slots, works, levels, ctas, queries_in_registers
    {{ 64,  4, 10, 4, 6, 2, true},  true, false, "shared memory: ring 80, Q 4, strips 4 and stack 6 of 113 KiB"},
    {{ 64,  8, 10, 4, 6, 2, true},  true, true,  "shared memory: ring 80, Q 4, strips 8 and stack 12 of 113 KiB"},
    {{ 64, 16,  8, 4, 6, 2, true},  true, true,  "shared memory: ring 64, Q 8, strips 8 and stack 24 of 113 KiB"},
    {{128,  4,  5, 4, 6, 2, true},  true, false, "shared memory: ring 80, Q 8, strips 8 and stack 12 of 113 KiB"},
    {{128,  8,  4, 2, 6, 2, true},  true, true,  "shared memory: ring 64, Q 4, strips 17 and stack 24 of 113 KiB"},
    {{128, 16,  3, 2, 4, 2, false},  true, true,  "shared memory: ring 48, Q 8, strips 17 and stack 32 of 113 KiB"},
    {{256,  4,  5, 4, 6, 1, true},  true, false, "shared memory: ring 160, Q 16, strips 16 and stack 24 of 227 KiB"},
    {{256,  8,  4, 2, 6, 1, true},  true, true,  "shared memory: ring 128, Q 8, strips 33 and stack 48 of 227 KiB"},
    {{256, 16,  3, 2, 5, 1, false}, true, true,  "shared memory: ring 96, Q 16, strips 33 and stack 80 of 227 KiB"},
    {{512,  8,  3, 2, 5, 1, false}, true, true,  "shared memory: ring 96, Q 16, strips 33 and stack 80 of 227 KiB"},
};
// clang-format on

inline constexpr int32_t kSharedBytesOfSm = 233472;  // for all CTAs, each of which takes one KiB for the system

// The tile for keys in e4m3: as many bytes in flight, in twice as many slots where the descales of their rows leave the
// room. All else is the same, so that the same numbers are added up in the same order.
constexpr DecodeTile for_e4m3(DecodeTile tile) {
    const int32_t most = kSharedBytesOfSm / tile.ctas - 1024;
    tile.key_bytes = 1;
    tile.slots *= 2;
    while (shared_bytes(tile) > most) --tile.slots;
    return tile;
}

// A thread, where two CTAs share an SM.
inline constexpr int32_t kDecodeConsumerRegisters = 176, kDecodeProducerRegisters = 80;
static_assert(2 * kWarpgroupThreads * (kDecodeConsumerRegisters + kDecodeProducerRegisters) <= kRegistersPerSm);

inline constexpr int32_t kMaxDecodeLevels = 6;

static_assert([] {
    for (const DecodeTileEntry& entry : kDecodeTiles) {
        const int32_t bytes = shared_bytes(entry.tile);
        const int32_t e4m3_bytes = shared_bytes(for_e4m3(entry.tile)), most = bytes > e4m3_bytes ? bytes : e4m3_bytes;
        if (most > kMaxSharedBytes || entry.tile.ctas * (most + 1024) > kSharedBytesOfSm) return false;
        if (entry.tile.levels > kMaxDecodeLevels) return false;
    }
    return true;
}());

// What the kernel is instantiated for.
struct DecodeConfig {
    DType dtype;
    DecodeTile tile;
    DecodeVariant variant;

    FOVEAL_HOST_DEVICE constexpr bool has_options() const { return variant == DecodeVariant::options; }
    FOVEAL_HOST_DEVICE constexpr bool computes() const { return variant != DecodeVariant::only_loads; }
};

// The same as a type (sm90/forward/tiles.hpp says why).
template <DType kType, int32_t kTileIndex, DecodeVariant kVariant>
struct DecodeInstance {
    static constexpr DecodeConfig kConfig{kType, kDecodeTiles[kTileIndex].tile, kVariant};
};
template <DType kType, int32_t kTileIndex, DecodeVariant kVariant>
struct DecodeE4m3Instance {
    static constexpr DecodeConfig kConfig{kType, for_e4m3(kDecodeTiles[kTileIndex].tile), kVariant};
};

}  // namespace foveal::sm90
