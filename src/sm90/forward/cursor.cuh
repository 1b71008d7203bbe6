// Which tiles a CTA computes: one producer warp finds them, one after the other, and publishes them ahead of time to
// those that load and to the consumers.
#pragma once

#include "sm90/forward/balance.cuh"
#include "sm90/forward/params.hpp"
#include "sm90/forward/schedule.hpp"
#include "sm90/forward/set_up.cuh"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// The CTA's tiles. Used by a whole, converged warp.
template <WorkTraits kTraits>
class WorkCursor {
    static constexpr int32_t kRows = kTraits.rows;

   public:
    __device__ WorkCursor(const ForwardParams& params, RankedTiles& ranked)
        : params_(params), window_(params), balancer_(params, ranked) {}

    // The next one; computed == 0 after the last.
    __device__ Work next() { return is_varlen<kTraits>(params_) ? next_of_varlen() : next_of_dense(); }

   private:
    __device__ Work next_of_dense() {
        for (;;) {
            const int32_t t = next_of_round();
            Work work{};
            if (t >= params_.order.tiles()) return work;
            const TilePlace place = tile_place(params_.order, t);
            work.batch = place.unit / params_.by_heads_k;
            work.sequence = work.batch;
            const int32_t len_q = lengths_q<kTraits>(params_).of_dense(work.batch).length;
            if (place.row_block * (kRows >> params_.heads_log2) >= len_q) continue;  // seqused_q ends before this tile
            work.head_k = place.unit - work.batch * params_.heads_k;
            const SequenceRows k = rows_of_keys<kTraits, false>(params_, work.batch);
            if constexpr (kTraits.any_keys) work.first_k = k.first;
            fill<kTraits>(work, params_, place, params_.heads_log2, len_q, k.length);
            return work;
        }
    }

    // Where tiles are long, they are dealt out by load; else in a serpentine.
    __device__ Work next_of_varlen() {
        const int32_t t = params_.bundle == 0 ? next_of_round() : balancer_.next();
        if (t < 0) return Work{};
        while (t >= window_.end_tile())
            if (!window_.advance()) return Work{};
        const auto place = window_.find(t);
        return work_in_sequence<kTraits>(params_, place.sequence, place.tile);
    }

    __device__ int32_t next_of_round() {
        return serpentine(round_++, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
    }

    const ForwardParams& params_;
    int32_t round_ = 0;
    SequenceWindow<kTraits> window_;
    Balancer<kTraits> balancer_;
};

// Of the tile's w-th 64 rows; of such without a head, as if there were one.
template <WorkTraits kTraits>
__device__ __forceinline__ OwnWork own_work_of(const ForwardParams& params, const Work& work, int32_t w) {
    const Range visit = work.blocks.visit;
    const auto is_ascending = [&] { return block_of_step<kTraits>(params, visit, visit.begin) == visit.begin; };
    const bool chunked = known_band<kTraits>(work.band).chunk != 0;
    const int32_t row = work.row + query_in_tile(w * kWarpgroupWarps, work.heads_log2);
    return own_work(work.band, chunked, work.blocks, row, queries_of_warpgroup(work.heads_log2), work.len_q,
                    kTraits.keys, is_ascending);
}

// The first tile is found while the others set up, unless global memory says where it is.
template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_work(Shared<kConfig>& shared, const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    constexpr WorkTraits kTraits = work_traits_of(kConfig);
    if (kTraits.any_keys || is_varlen<kTraits>(params) || params.seqused_q != nullptr || params.seqused_k != nullptr)
        await_kernel_before();
    WorkCursor<kTraits> cursor(params, shared.ranked_tiles);
    RingPosition<kWorkSlots> ring;
    bool is_set_up = false;
    for (bool more = true; more; ring.advance()) {
        const Work work = cursor.next();
        if (!is_set_up) await_set_up<kConfig>();
        is_set_up = true;
        more = work.computed != 0;
        const int32_t g = ptx::lane_id();  // sees to the tile's g-th 16 rows
        const bool has_rows = more && g < kTile.segments();
        const Segment rows = has_rows ? segment_of<kTraits>(params, work, g) : Segment{};
        shared.work_ring.wait_free(ring);
        if (ptx::elect_sync()) {
            shared.work[ring.slot] = work;
            if constexpr (kTile.has_own_blocks())
                for (int32_t w = 0; w < kTile.query_tiles(); ++w)
                    shared.own_work[ring.slot][w] = own_work_of<kTraits>(params, work, w);
        }
        if (has_rows) shared.segments[ring.slot][g] = rows;
        ptx::mbarrier_arrive(
            shared.work_ring.full[ring.slot][0]);  // every thread for itself: racecheck follows no warp
        __syncwarp();
    }
}

// By those that load: waits for the tile in a slot and copies it.
template <class SharedMemory>
__device__ __forceinline__ Work next_work(SharedMemory& shared, RingPosition<kWorkSlots> works) {
    shared.work_ring.wait_full(works);
    const Work work = shared.work[works.slot];
    ptx::mbarrier_arrive(shared.work_ring.free[works.slot][0]);  // every thread for itself: racecheck follows no warp
    return work;
}

}  // namespace foveal::sm90
