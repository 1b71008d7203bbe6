// The forward kernel's producer warps: steps 1 to 3 of its schedule (forward.cuh).
#pragma once

#include "balance.cuh"
#include "forward_params.hpp"
#include "ptx/mbarrier.cuh"
#include "ptx/tensor_copy.cuh"
#include "ptx/warp.cuh"
#include "shared.cuh"
#include "tiles.hpp"
#include "work.cuh"

namespace foveal::sm90 {

// kRows rows of kColumns columns, as a tile of panels; by one thread. kOnce: no other tile will read them.
template <int32_t kRows, int32_t kColumns, bool kOnce = false>
__device__ __forceinline__ void load_tile(uint16_t* tile, const CUtensorMap& map, uint64_t& barrier, int32_t row,
                                          int32_t head, int32_t batch) {
    ptx::mbarrier_arrive_expect_tx(barrier, kRows * kColumns * 2);
#pragma unroll
    for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel) {
        uint16_t* box = tile + panel * kRows * kPanelColumns;
        if constexpr (kOnce)
            ptx::tensor_load_once(box, map, barrier, panel * kPanelColumns, row, head, batch);
        else
            ptx::tensor_load(box, map, barrier, panel * kPanelColumns, row, head, batch);
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_k(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kConfig> cursor(params, shared.turns);
    RingPosition<kTile.stages> ring;
    for (Work work = cursor.next(); work.valid; work = cursor.next())
        for (int32_t step = work.blocks.visit.begin; step < work.blocks.visit.end; ++step, ring.advance()) {
            const int32_t block = block_of_step<kConfig>(params, work.blocks.visit, step);
            ptx::mbarrier_wait(shared.k_free[ring.slot], ring.parity ^ 1);
            if (ptx::elect_sync())
                load_tile<kTile.keys, kTile.head_dim>(shared.k[ring.slot], maps.k, shared.k_full[ring.slot],
                                                      work.first_k + block * kTile.keys, work.head_k, work.batch);
            __syncwarp();
        }
}

// Rows [first_row, keys) of a V block in shared memory, all panels.
template <ForwardConfig kConfig>
__device__ __forceinline__ void zero_rows(uint16_t* tile, int32_t first_row) {
    constexpr ForwardTile kTile = kConfig.tile;
    constexpr int32_t kRowVectors = kPanelColumns * 2 / sizeof(uint4);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    for (int32_t panel = 0; panel < kTile.head_dim_v / kPanelColumns; ++panel) {
        auto* rows = reinterpret_cast<uint4*>(tile + panel * kTile.keys * kPanelColumns);
        for (int32_t i = first_row * kRowVectors + lane; i < kTile.keys * kRowVectors; i += 32)
            rows[i] = uint4{0, 0, 0, 0};
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_v(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kConfig> cursor(params, shared.turns);
    RingPosition<kTile.stages> ring;
    RingPosition<1> landing;
    for (Work work = cursor.next(); work.valid; work = cursor.next())
        for (int32_t step = work.blocks.visit.begin; step < work.blocks.visit.end; ++step, ring.advance()) {
            const int32_t row = block_of_step<kConfig>(params, work.blocks.visit, step) * kTile.keys;
            // The copy engine fills with zeros past the tensor, but not past the sequence.
            const bool has_stray_rows =
                row + kTile.keys > work.band.len_k && work.first_k + work.band.len_k < params.mapped_rows_k;
            ptx::mbarrier_wait(shared.v_free[ring.slot], ring.parity ^ 1);
            uint64_t& landed = has_stray_rows ? shared.v_landed : shared.v_full[ring.slot];
            if (ptx::elect_sync())
                load_tile<kTile.keys, kTile.head_dim_v>(shared.v[ring.slot], maps.v, landed, work.first_k + row,
                                                        work.head_k, work.batch);
            __syncwarp();
            if (!has_stray_rows) continue;
            ptx::mbarrier_wait(shared.v_landed, landing.parity);
            landing.advance();
            zero_rows<kConfig>(shared.v[ring.slot], max_i32(work.band.len_k - row, 0));
            ptx::fence_proxy_async();
            __syncwarp();
            if (ptx::elect_sync()) ptx::mbarrier_arrive(shared.v_full[ring.slot]);
            __syncwarp();
        }
}

// Varlen: the tiles of this CTA, for the warps that load. Where tiles are short, those take them in a serpentine.
template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_turns(Shared<kConfig>& shared, const ForwardParams& params) {
    if (!is_varlen<kConfig>(params) || params.bundle == 0) return;
    Balancer<kConfig> balancer(params, shared.ranked_tiles);
    RingPosition<TurnRing::kSlots> ring;
    for (int32_t tile = 0; tile >= 0; ring.advance()) {
        tile = balancer.next();
        ptx::mbarrier_wait(shared.turns.free[ring.slot], ring.parity ^ 1);
        if (ptx::elect_sync()) {
            shared.turns.tile[ring.slot] = tile;
            ptx::mbarrier_arrive(shared.turns.full[ring.slot]);
        }
        __syncwarp();
    }
}

// The head's own values, for the consumers.
template <ForwardConfig kConfig>
__device__ __forceinline__ void look_up_head(Work& work, const ForwardParams& params) {
    work.sink = params.sinks == nullptr ? -INFINITY : params.sinks[work.head_q];
    if constexpr (kConfig.has_options())
        if (params.scores.alibi_slopes != nullptr)
            work.slope = params.scores.alibi_slopes[work.sequence * params.scores.alibi_batch_stride + work.head_q];
}

// Of the tile's w-th 64 rows.
template <ForwardConfig kConfig>
__device__ __forceinline__ OwnWork own_work_of(const ForwardParams& params, const Work& work, int32_t w) {
    const Range visit = work.blocks.visit;
    const auto is_ascending = [&] { return block_of_step<kConfig>(params, visit, visit.begin) == visit.begin; };
    const bool chunked = known_band<kConfig>(work.band).chunk != 0;
    return own_work(work.band, chunked, work.blocks, work.row + w * kWarpgroupRows, work.len_q, kConfig.tile.keys,
                    is_ascending);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_q(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kConfig> cursor(params, shared.turns);
    RingPosition<kTile.query_buffers> ring;
    RingPosition<kWorkSlots> slots;
    for (bool more = true; more; ring.advance(), slots.advance()) {
        Work work = cursor.next();
        more = work.valid;
        if (more) look_up_head<kConfig>(work, params);
        for (int32_t w = 0; w < kTile.query_tiles(); ++w) {
            ptx::mbarrier_wait(shared.q_free[ring.slot][w], ring.parity ^ 1);
            if (ptx::elect_sync()) {
                if (w == 0) shared.work[slots.slot] = work;
                if constexpr (kTile.has_own_blocks())
                    shared.own_work[slots.slot][w] = own_work_of<kConfig>(params, work, w);
                uint64_t& full = shared.q_full[ring.slot][w];
                if (more)
                    load_tile<kWarpgroupRows, kTile.head_dim, true>(shared.q[ring.slot][w], maps.q, full,
                                                                    work.first_q + work.row + w * kWarpgroupRows,
                                                                    work.head_q, work.batch);
                else
                    ptx::mbarrier_arrive(full);
            }
            __syncwarp();
        }
    }
}

}  // namespace foveal::sm90
