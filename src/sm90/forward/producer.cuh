// The forward kernel's producer warps that load Q, K and V: steps 1 to 3 of its schedule (kernel.cuh).
#pragma once

#include "sm90/forward/cursor.cuh"
#include "sm90/forward/key_loader.cuh"
#include "sm90/forward/params.hpp"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// Loads kRows rows of kColumns columns as a tile of panels (tile/panel.hpp). One thread calls it.
template <int32_t kRows, int32_t kColumns>
__device__ __forceinline__ void load_tile(uint16_t* tile, const CUtensorMap& map, uint64_t& barrier, int32_t row,
                                          int32_t head, int32_t batch) {
    ptx::mbarrier_arrive_expect_tx(barrier, kRows * kColumns * 2);
#pragma unroll
    for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
        ptx::tensor_load(tile + panel * kRows * kPanelColumns, map, barrier, panel * kPanelColumns, row, head, batch);
}

// Loads the tile's w-th 64 rows of Q: in one box a panel or, if the tile is packed, a segment at a time. One thread
// calls it.
template <int32_t kHeadDim>
__device__ __forceinline__ void load_queries(uint16_t* tile, const ForwardMaps& maps, uint64_t& barrier,
                                             const Work& work, int32_t w) {
    const bool packed = work.heads_log2 > 0;
    const CUtensorMap& map = packed ? maps.packed_q : maps.q;
    ptx::mbarrier_arrive_expect_tx(barrier, kWarpgroupRows * kHeadDim * 2);
#pragma unroll 1
    for (int32_t i = 0; i < (packed ? kWarpgroupWarps : 1); ++i) {
        const int32_t row = work.first_q + work.query_of(w * kWarpgroupWarps + i),
                      head = work.head_of(w * kWarpgroupWarps + i);
#pragma unroll
        for (int32_t panel = 0; panel < kHeadDim / kPanelColumns; ++panel)
            ptx::tensor_load(tile + (panel * kWarpgroupRows + i * kWarpRows) * kPanelColumns, map, barrier,
                             panel * kPanelColumns, row, head, work.batch);
    }
}

// Calls load(work, block, ring) for each K/V block of each tile, in the order in which the consumers take them.
template <ForwardConfig kConfig, class Load>
__device__ __forceinline__ void for_each_block(Shared<kConfig>& shared, const ForwardParams& params, Load load) {
    RingPosition<kWorkSlots> works;
    RingPosition<kConfig.tile.stages> ring;
    for (;; works.advance()) {
        const Work work = next_work(shared, works);
        if (work.computed == 0) return;
        const Range visit = work.blocks.visit;
        for (int32_t step = visit.begin; step < visit.end; ++step, ring.advance())
            load(work, block_of_step<work_traits_of(kConfig)>(params, visit, step), ring);
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_k(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        shared.k_ring.wait_free(ring);
        if (ptx::elect_sync())
            load_tile<kTile.keys, kTile.head_dim>(shared.k[ring.slot], maps.k, shared.k_ring.full[ring.slot][0],
                                                  work.first_k + block * kTile.keys, work.head_k, work.batch);
        __syncwarp();
    });
}

// K or V whose rows are gathered. A block is handed on when the next one's rows are looked up, which takes as long as
// its own copies do.
template <ForwardConfig kConfig, int32_t kColumns>
__device__ __forceinline__ void gather_blocks(Shared<kConfig>& shared, Ring<kConfig.tile.stages>& barriers,
                                              uint16_t (*tiles)[kConfig.tile.keys * kColumns],
                                              const ForwardParams& params, const GatheredRows& tensor) {
    constexpr ForwardTile kTile = kConfig.tile;
    const RowLoader<kTile.keys, kColumns> loader(params.places, tensor);
    int32_t begun = -1;
    const auto hand_on = [&] {
        if (begun < 0) return;
        loader.finish();
        if (ptx::elect_sync()) ptx::mbarrier_arrive(barriers.full[begun][0]);
        __syncwarp();
    };
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        const auto rows = loader.find(work, block * kTile.keys);
        hand_on();
        barriers.wait_free(ring);
        loader.load(tiles[ring.slot], rows);
        begun = ring.slot;
    });
    hand_on();
}

// K of keys of any form.
template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_any_k(Shared<kConfig>& shared, const ForwardMaps& maps,
                                              const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    const KeyPlaces& places = params.places;
    if (places.box_rows == 0)
        return gather_blocks<kConfig, kTile.head_dim>(shared, shared.k_ring, shared.k, params, places.k);
    const BoxLoader<kTile.keys, kTile.head_dim> loader(places, maps.k);
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        const auto boxes = loader.find(work, block * kTile.keys);
        shared.k_ring.wait_free(ring);
        loader.load(shared.k[ring.slot], shared.k_ring.full[ring.slot][0], work.head_k, boxes);
    });
}

// Zeroes some rows of a tile of panels, of kRows rows and kColumns columns.
template <int32_t kRows, int32_t kColumns>
__device__ __forceinline__ void zero_rows(uint16_t* tile, Range zeroed) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel) {
        auto* rows = reinterpret_cast<uint4*>(tile + panel * kRows * kPanelColumns);
        for (int32_t i = zeroed.begin * kRowVectors + lane; i < zeroed.end * kRowVectors; i += 32)
            rows[i] = uint4{0, 0, 0, 0};
    }
}

// Of a V block in v_landed, whose first key is `row`: zeroes the rows outside `seen`, and hands it on.
template <ForwardConfig kConfig>
__device__ __forceinline__ void finish_v(Shared<kConfig>& shared, int32_t slot, RingPosition<1>& landing, Range seen,
                                         int32_t row) {
    constexpr ForwardTile kTile = kConfig.tile;
    ptx::mbarrier_wait(shared.v_landed, landing.parity);
    landing.advance();
    zero_rows<kTile.keys, kTile.head_dim_v>(shared.v[slot], {0, min_i32(seen.begin - row, kTile.keys)});
    zero_rows<kTile.keys, kTile.head_dim_v>(shared.v[slot], {max_i32(seen.end - row, 0), kTile.keys});
    ptx::fence_proxy_async();
    __syncwarp();
    if (ptx::elect_sync()) ptx::mbarrier_arrive(shared.v_ring.full[slot][0]);
    __syncwarp();
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_v(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    RingPosition<1> landing;
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        const int32_t row = block * kTile.keys;
        // Of keys that no query of the sequence sees, P is zero, and V may be anything. The copy engine fills with
        // zeros past the tensor, but not past the sequence or what is seen of it.
        const Range seen = work.seen;
        const bool has_stray_rows =
            row < seen.begin || (row + kTile.keys > seen.end && work.first_k + seen.end < params.mapped_rows_k);
        shared.v_ring.wait_free(ring);
        uint64_t& landed = has_stray_rows ? shared.v_landed : shared.v_ring.full[ring.slot][0];
        if (ptx::elect_sync())
            load_tile<kTile.keys, kTile.head_dim_v>(shared.v[ring.slot], maps.v, landed, work.first_k + row,
                                                    work.head_k, work.batch);
        __syncwarp();
        if (has_stray_rows) finish_v<kConfig>(shared, ring.slot, landing, seen, row);
    });
}

// V of keys of any form.
template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_any_v(Shared<kConfig>& shared, const ForwardMaps& maps,
                                              const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    const KeyPlaces& places = params.places;
    if (places.box_rows == 0)
        return gather_blocks<kConfig, kTile.head_dim_v>(shared, shared.v_ring, shared.v, params, places.v);
    const BoxLoader<kTile.keys, kTile.head_dim_v> loader(places, maps.v);
    RingPosition<1> landing;
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        const int32_t row = block * kTile.keys;
        const Range seen = work.seen;
        const bool is_last_of_tensor = !places.in_pages && work.first_k + seen.end >= params.mapped_rows_k;
        const bool has_stray_rows = row < seen.begin || (row + kTile.keys > seen.end && !is_last_of_tensor);
        const auto boxes = loader.find(work, row);
        shared.v_ring.wait_free(ring);
        uint64_t& landed = has_stray_rows ? shared.v_landed : shared.v_ring.full[ring.slot][0];
        loader.load(shared.v[ring.slot], landed, work.head_k, boxes);
        if (has_stray_rows) finish_v<kConfig>(shared, ring.slot, landing, seen, row);
    });
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_q(Shared<kConfig>& shared, const ForwardMaps& maps) {
    constexpr ForwardTile kTile = kConfig.tile;
    RingPosition<kTile.query_buffers> ring;
    RingPosition<kWorkSlots> works;
    for (;; ring.advance(), works.advance()) {
        const Work work = next_work(shared, works);
        for (int32_t w = 0; w < kTile.query_tiles(); ++w) {
            shared.q_ring.wait_free(ring, w);
            if (ptx::elect_sync()) {
                uint64_t& full = shared.q_ring.full[ring.slot][w];
                if ((work.computed >> w & 1) != 0)
                    load_queries<kTile.head_dim>(shared.q[ring.slot][w], maps, full, work, w);
                else
                    ptx::mbarrier_arrive(full);
            }
            __syncwarp();
        }
        if (work.computed == 0) return;
    }
}

}  // namespace foveal::sm90
