// Which tile a CTA computes next. Every producer warp walks the same sequence of tiles with a cursor of its own; the
// one that loads Q publishes them to the consumers.
#pragma once

#include "forward_params.hpp"
#include "mask.hpp"
#include "schedule.hpp"
#include "tiles.hpp"

namespace foveal::sm90 {

// One tile: up to `rows` query rows of one head of one sequence, and the K/V blocks they need.
struct Work {
    bool valid;  // false: no tile is left
    int32_t sequence;
    int32_t batch;    // coordinate in the tensor maps; varlen: 0
    int32_t first_q;  // rows of q before the sequence; dense: 0
    int32_t first_k;
    int32_t head_q;
    int32_t head_k;
    int32_t row;  // of the sequence: the tile's first
    int32_t len_q;
    float sink;   // of the head; -inf: none
    float slope;  // ALiBi; variants with options
    Band band;
    BlockRange blocks;
};

// The band as the variants without options see it: no registers for what is always 0.
template <ForwardConfig kConfig>
__device__ __forceinline__ Band known_band(Band band) {
    if constexpr (!kConfig.has_options()) band.chunk = 0;
    return band;
}

// The K/V block that is visited in step `step` of [visit.begin, visit.end).
template <ForwardConfig kConfig>
__device__ __forceinline__ int32_t block_of_step(const ForwardParams& params, Range visit, int32_t step) {
    if constexpr (kConfig.has_options())
        if (params.scores.last_keys_first) return visit.begin + visit.end - 1 - step;
    return step;
}

// Used by a whole, converged warp.
template <ForwardConfig kConfig>
class WorkCursor {
    static constexpr int32_t kRows = kConfig.tile.rows(), kKeys = kConfig.tile.keys;

   public:
    __device__ explicit WorkCursor(const ForwardParams& params) : params_(params) {
        if (params_.cu_seqlens_q != nullptr) load_sequences();
    }

    // The CTA's next tile; !valid after the last.
    __device__ Work next() {
        for (;;) {
            const int32_t t = serpentine(turn_++, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x));
            Work work{};
            work.valid = params_.cu_seqlens_q != nullptr ? place_varlen(t, work) : place_dense(t, work);
            if (!work.valid) return work;
            if (work.row >= work.len_q) continue;  // seqused_q ends before this tile
            work.blocks = kv_range(work.band, {work.row, min_i32(work.row + kRows, work.len_q)}, kKeys);
            // A tile whose rows see no key visits one block, all of it masked, and so writes its zeros.
            if (work.blocks.visit.size() == 0) work.blocks = {{0, 1}, {0, 0}};
            return work;
        }
    }

   private:
    __device__ bool place_dense(int32_t t, Work& work) const {
        const int32_t units = params_.batch * params_.heads_k;
        const int32_t in_section = section_units(params_.section_keys, params_.rows_k, units);
        const TileOrder order{units,
                              params_.group,
                              (params_.rows_q + kRows - 1) / kRows,
                              in_section,
                              section_count(units, in_section, params_.last_section_units),
                              params_.last_rows_first};
        if (t >= order.tiles()) return false;
        const TilePlace place = tile_place(order, t);
        work.batch = place.unit / params_.heads_k;
        work.sequence = work.batch;
        work.head_k = place.unit - work.batch * params_.heads_k;
        fill(work, place, used(params_.seqused_q, work.batch, params_.rows_q),
             used(params_.seqused_k, work.batch, params_.rows_k));
        return true;
    }

    __device__ bool place_varlen(int32_t t, Work& work) {
        while (t >= tiles_before_ + __shfl_sync(~0u, tiles_end_, 31)) {
            tiles_before_ += __shfl_sync(~0u, tiles_end_, 31);
            sequences_before_ += 32;
            if (sequences_before_ >= params_.batch) return false;
            load_sequences();
        }
        const int32_t lane = __ffs(static_cast<int32_t>(__ballot_sync(~0u, t - tiles_before_ < tiles_end_))) - 1;
        const int32_t sequence = sequences_before_ + lane;
        const int32_t tiles_end_before = lane == 0 ? 0 : __shfl_sync(~0u, tiles_end_, max_i32(lane - 1, 0));
        work.sequence = sequence;
        work.first_q = params_.cu_seqlens_q[sequence];
        work.first_k = params_.cu_seqlens_k[sequence];
        const int32_t len_q = used(params_.seqused_q, sequence, params_.cu_seqlens_q[sequence + 1] - work.first_q);
        const int32_t len_k = used(params_.seqused_k, sequence, params_.cu_seqlens_k[sequence + 1] - work.first_k);
        const int32_t in_section = section_units(params_.section_keys, len_k, params_.heads_k);
        const TileOrder order{params_.heads_k,
                              params_.group,
                              (len_q + kRows - 1) / kRows,
                              in_section,
                              section_count(params_.heads_k, in_section, 1),
                              params_.last_rows_first};
        const TilePlace place = tile_place(order, t - tiles_before_ - tiles_end_before);
        work.head_k = place.unit;
        fill(work, place, len_q, len_k);
        return true;
    }

    __device__ void fill(Work& work, TilePlace place, int32_t len_q, int32_t len_k) const {
        work.head_q = work.head_k * params_.group + place.head_in_group;
        work.row = place.row_block * kRows;
        work.len_q = len_q;
        work.band = known_band<kConfig>(band_of(params_.window, len_q, len_k));
    }

    // Lane l: tiles of sequences sequences_before_ .. sequences_before_ + l together.
    __device__ void load_sequences() {
        const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
        const int32_t sequence = sequences_before_ + lane;
        int32_t tiles = 0;
        if (sequence < params_.batch) {
            const int32_t len = params_.cu_seqlens_q[sequence + 1] - params_.cu_seqlens_q[sequence];
            tiles = (used(params_.seqused_q, sequence, len) + kRows - 1) / kRows * params_.group * params_.heads_k;
        }
        for (int32_t step = 1; step < 32; step *= 2) {
            const int32_t below = __shfl_up_sync(~0u, tiles, step);
            if (lane >= step) tiles += below;
        }
        tiles_end_ = tiles;
    }

    __device__ static int32_t used(const int32_t* seqused, int32_t sequence, int32_t length) {
        return seqused != nullptr ? min_i32(seqused[sequence], length) : length;
    }

    const ForwardParams& params_;
    int32_t turn_ = 0;
    int32_t sequences_before_ = 0;  // varlen: sequences before the 32 that the lanes hold
    int32_t tiles_before_ = 0;
    int32_t tiles_end_ = 0;
};

}  // namespace foveal::sm90
