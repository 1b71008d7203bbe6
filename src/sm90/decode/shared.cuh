// The decode kernel's shared memory.
#pragma once

#include <cstdint>

#include "sm90/decode/sequence.hpp"
#include "sm90/decode/split.hpp"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// A piece that is announced to the computing warps.
struct alignas(16) DecodeWork {
    int32_t number;  // of the sequence; -1: there is no more
    int32_t part;    // of its columns, where q is varlen
    int32_t head;    // of params.heads
    Piece piece;     // blocks, counted from the first that is seen
    Sequence sequence;
    SeenKeys seen;
    int32_t node_set;
    uint32_t before;  // blocks of the sequences before it

    FOVEAL_HOST_DEVICE bool is_whole() const { return piece.begin == 0 && piece.end == seen.counted_blocks(); }
};

// What it takes to bring a piece's keys.
struct FoundKeys {
    int32_t number, head, first_k;
    Piece piece;
    SeenKeys seen;

    FOVEAL_HOST_DEVICE int32_t blocks() const { return min_i32(piece.end, seen.blocks) - piece.begin; }
};

// The CTA's named barriers. Barrier 0 joins all threads when the CTA has set itself up; the other is of the warps that
// compute.
enum DecodeBarrier : int32_t { kDecodeSetUp = 0, kDecodeConsumers = 1 };

// Which node lies where, when a sequence is put together: a place (split.hpp) for every 2^log2_leaves leaves, or -1.
struct NodeMap {
    int32_t places[1 << kMaxDecodeLevels];
    int32_t log2_leaves;
};

// Of a column of a strip, or of a node: the exponents' reference in base 2, a whole number; the sum of the P that were
// multiplied, rounded as they were, by which the output is divided, so that a P's rounding cancels where it alone
// counts; and the sum of the exact ones, for the log-sum-exp.
struct alignas(16) ColumnSums {
    float reference, rounded, exact, unused;
};

// Of a column: its query and what that sees, and ALiBi's slope of its head.
struct alignas(16) ColumnKeys {
    Range seen;
    int32_t query;
    float slope;
};

// Of keys in e4m3 that have a descale each: those of the keys in a slot.
template <int32_t kSlots>
struct alignas(16) RowDescales {
    float of[kSlots][kBlockKeys];
};
template <>
struct RowDescales<0> {};

template <DecodeConfig kConfig>
struct DecodeShared {
    static constexpr DecodeTile kTile = kConfig.tile;
    // Panels, one behind the other (key_layout.cuh).
    alignas(1024) unsigned char slots[kTile.slots][kTile.slot_bytes()];
    uint16_t queries[kTile.works][kTile.octets() * kOctetColumns * kTile.head_dim];
    // Four floats more a column: threads that write neighbouring columns then use different banks.
    float strips[kWarpgroupWarps][kTile.strip_columns()][kTile.head_dim + 4];
    float stack[kTile.levels][kTile.warp_columns()][kWarpgroupThreads][kTile.values()];
    ColumnSums strip_sums[kWarpgroupWarps][kTile.strip_columns()];
    ColumnKeys column_keys[kWarpgroupWarps][kTile.octets() * kOctetColumns];  // each warp's own
    DecodeWork works[kTile.works];
    Ring<kTile.slots> ring;  // K and V of a block in turn
    Ring<kTile.works> work_ring;
    uint64_t queries_full[kTile.works];
    uint64_t map_ready;  // that of the first piece
    NodeMap map;
    Deal deal;
    bool is_last;  // this CTA has brought its sequence's last piece
    RowDescales<kTile.dequantises() ? kTile.slots : 0> descales;
};

// By the four warps that compute, each some: a barrier takes 25 clocks.
template <DecodeConfig kConfig>
__device__ __forceinline__ void initialise_barriers(DecodeShared<kConfig>& shared, bool in_boxes, bool row_descales,
                                                    int32_t warp) {
    constexpr DecodeTile kTile = kConfig.tile;
    if (!ptx::elect_sync()) return;
    // A box's bytes are expected by one thread, and boxes are asked for by one warp; rows are copied by all threads of
    // three. Rows' descales are copied by all lanes, beside boxes too.
    const uint32_t box_fillers = kTile.dequantises() && row_descales ? 1 + kWarpThreads : 1,
                   fillers = in_boxes ? box_fillers : kRowLoaderThreads, readers = in_boxes ? 0 : kRowLoaderThreads;
    if (warp == 0)
        for (int32_t i = 0; i < kTile.slots; ++i) ptx::mbarrier_init(shared.ring.full[i][0], fillers);
    if (warp == 1)
        for (int32_t i = 0; i < kTile.slots; ++i) ptx::mbarrier_init(shared.ring.free[i][0], kWarpgroupWarps);
    if (warp == 2)
        for (int32_t i = 0; i < kTile.works; ++i) shared.work_ring.initialise(i, 1, kWarpgroupThreads + readers);
    if (warp == 3) {
        for (int32_t i = 0; i < kTile.works; ++i) ptx::mbarrier_init(shared.queries_full[i], kWarpThreads);
        ptx::mbarrier_init(shared.map_ready, 1);
    }
    ptx::fence_mbarrier_init();
}

}  // namespace foveal::sm90
