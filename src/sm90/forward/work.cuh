// A tile of the computation, and where it is found in a batch of sequences.
#pragma once

#include "problem/lengths.hpp"
#include "sm90/forward/params.hpp"
#include "sm90/forward/schedule.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/scores/alibi.cuh"
#include "sm90/scores/mask.hpp"

namespace foveal::sm90 {

// What the search for a CTA's tiles knows of the kernel when it is compiled.
struct WorkTraits {
    int32_t rows, keys;  // of a tile, and of a K/V block
    bool varlen;         // the kernel serves varlen batches too
    bool options;        // the kernel serves attention chunks, K/V blocks in descending order, and shared values
    bool any_keys;       // the kernel serves K and V of another form than q's, and offsets of the queries
};

// One tile: query rows of one sequence, and the K/V blocks that they need. The rows belong to one head or, if the tile
// is packed, to up to 2^heads_log2 heads from head_q on (schedule.hpp).
struct Work {
    uint32_t computed;  // bit w: its w-th 64 rows are computed; 0: no tile is left
    int32_t sequence;
    int32_t batch;    // coordinate in the tensor maps; varlen: 0
    int32_t first_q;  // rows of q before the sequence; dense: 0
    int32_t first_k;
    int32_t head_q;  // the first
    int32_t heads;   // up to 2^heads_log2
    int32_t head_k;
    int32_t row;  // of the sequence: the tile's first query
    int32_t len_q;
    int32_t heads_log2;
    Band band;
    Range seen;  // keys that some query of the sequence sees; none if the tile sees none
    BlockRange blocks;

    // Of the tile's g-th segment: the head, if there is one, and the first query; without a head, past the end.
    __device__ __forceinline__ bool has_head(int32_t g) const { return head_in_tile(g, heads_log2) < heads; }
    __device__ __forceinline__ int32_t head_of(int32_t g) const { return head_q + head_in_tile(g, heads_log2); }
    __device__ __forceinline__ int32_t query_of(int32_t g) const {
        return has_head(g) ? row + query_in_tile(g, heads_log2) : len_q;
    }
};

// A segment is the 16 rows of a tile that one warp computes. Here is what whoever loads or computes them needs to know.
struct alignas(16) Segment {
    int32_t query;  // the first; if the tile lacks their head, past the sequence's end
    int32_t head;
    float sink;   // the head's; -inf: none
    float slope;  // ALiBi's
};

template <WorkTraits kTraits>
__device__ __forceinline__ Segment segment_of(const ForwardParams& params, const Work& work, int32_t g) {
    Segment segment{work.query_of(g), work.head_of(g), -INFINITY, 0.0f};
    if (!work.has_head(g)) return segment;
    const ScoreOptions& scores = params.scores;
    const auto of_head = [&](int32_t stride) { return segment.head * (kTraits.options ? stride : 1); };
    if (params.sinks != nullptr) segment.sink = params.sinks[of_head(scores.sinks_head_stride)];
    if (scores.alibi_slopes != nullptr)
        segment.slope =
            scores.alibi_slopes[work.sequence * scores.alibi_batch_stride + of_head(scores.alibi_head_stride)];
    // An offset may put queries further from the keys than the lengths say.
    if constexpr (kTraits.any_keys && kTraits.options)
        if (params.places.query_offset != nullptr)
            segment.slope = finite_slope(segment.slope, work.len_q, work.band.len_k + abs(work.band.off));
    return segment;
}

// The band as the variants without options see it: no registers for what is always 0.
template <WorkTraits kTraits>
__device__ __forceinline__ Band known_band(Band band) {
    if constexpr (!kTraits.options) band.chunk = 0;
    return band;
}

// The K/V block that is visited in step `step` of [visit.begin, visit.end).
template <WorkTraits kTraits>
__device__ __forceinline__ int32_t block_of_step(const ForwardParams& params, Range visit, int32_t step) {
    if constexpr (kTraits.options)
        if (params.scores.last_keys_first) return visit.begin + visit.end - 1 - step;
    return step;
}

// Tiles that are only for dense problems leave out what varlen needs.
template <WorkTraits kTraits>
__device__ __forceinline__ bool is_varlen(const ForwardParams& params) {
    return kTraits.varlen && params.cu_seqlens_q != nullptr;
}

template <WorkTraits kTraits>
__device__ __forceinline__ Lengths lengths_q(const ForwardParams& params) {
    return {params.rows_q, params.cu_seqlens_q, params.seqused_q, kTraits.options ? params.scores.seqused_q_stride : 1};
}
template <WorkTraits kTraits>
__device__ __forceinline__ Lengths lengths_k(const ForwardParams& params) {
    return {params.rows_k, params.cu_seqlens_k, params.seqused_k, kTraits.options ? params.scores.seqused_k_stride : 1};
}

// Keys of a sequence, of a dense or a varlen batch.
template <WorkTraits kTraits, bool kVarlen>
__device__ __forceinline__ SequenceRows rows_of_keys(const ForwardParams& params, int32_t sequence) {
    const Lengths lengths = lengths_k<kTraits>(params);
    if constexpr (kTraits.any_keys) return lengths.of(sequence);
    return kVarlen ? lengths.of_varlen(sequence) : lengths.of_dense(sequence);
}

// The window over a sequence.
template <WorkTraits kTraits>
__device__ __forceinline__ Band band_in_sequence(const ForwardParams& params, int32_t sequence, int32_t len_q,
                                                 int32_t len_k) {
    if constexpr (kTraits.any_keys) {
        const KeyPlaces& places = params.places;
        if (places.query_offset != nullptr)
            return known_band<kTraits>(
                band_at(params.window, places.query_offset[sequence * places.query_offset_stride], len_k));
    }
    return known_band<kTraits>(band_of(params.window, len_q, len_k));
}

// Work::computed of a tile that there is.
template <WorkTraits kTraits>
__device__ __forceinline__ uint32_t computed_rows(const ForwardParams& params, const Work& work) {
    const bool all = work.blocks.visit.size() < params.passed_over_blocks;
    uint32_t computed = 0;
#pragma unroll
    for (int32_t w = 0; w < kTraits.rows / kWarpgroupRows; ++w)
        if (all || work.query_of(w * kWarpgroupWarps) < work.len_q) computed |= 1u << w;
    return computed;
}

// The place of a tile in its sequence's order, and what it visits there.
template <WorkTraits kTraits>
__device__ __forceinline__ void fill(Work& work, const ForwardParams& params, TilePlace place, int32_t heads_log2,
                                     int32_t len_q, int32_t len_k) {
    const int32_t queries = kTraits.rows >> heads_log2;
    const int32_t head_in_unit = place.head_in_unit << heads_log2;
    work.head_q = work.head_k * params.heads_per_kv + head_in_unit;
    work.heads = min_i32(1 << heads_log2, params.heads_per_kv - head_in_unit);
    work.row = place.row_block * queries;
    work.len_q = len_q;
    work.heads_log2 = heads_log2;
    work.band = band_in_sequence<kTraits>(params, work.sequence, len_q, len_k);
    work.seen = seen_keys(work.band, len_q);
    work.blocks = blocks_of_rows(work.band, {work.row, min_i32(work.row + queries, len_q)}, kTraits.keys);
    // A tile whose rows see no key visits one block, all of it masked and its V zeroed, and so writes its zeros.
    if (work.blocks.visit.size() == 0) {
        work.blocks = {{0, 1}, {0, 0}};
        work.seen = {0, 0};
    }
    work.computed = computed_rows<kTraits>(params, work);
}

// What a sequence of a varlen batch is to the order of its tiles.
struct SequenceTiles {
    int32_t heads_log2;    // packed
    int32_t heads_per_kv;  // as in TileOrder
    int32_t row_blocks;
};

// Packed, if that saves tiles enough and all heads are in one section. (Nothing but the sequence decides: plan.cpp,
// packed_heads_log2().)
template <WorkTraits kTraits>
__device__ __forceinline__ SequenceTiles tiles_of_sequence(const ForwardParams& params, int32_t len_q, int32_t len_k) {
    constexpr int32_t kRows = kTraits.rows;
    const int32_t heads_log2 = params.heads_log2;
    const int32_t apart = row_blocks_of(len_q, kRows, 0);
    if (heads_log2 == 0 || len_k > params.packed_section_keys) return {0, params.heads_per_kv, apart};
    const int32_t packs = packs_of(params.heads_per_kv, heads_log2), packed = row_blocks_of(len_q, kRows, heads_log2);
    if (packs * packed > params.heads_per_kv * apart - params.least_saved_tiles) return {0, params.heads_per_kv, apart};
    return {heads_log2, packs, packed};
}

// Tile t of sequence `sequence` of a varlen batch.
template <WorkTraits kTraits>
__device__ __forceinline__ Work work_in_sequence(const ForwardParams& params, int32_t sequence, int32_t t) {
    Work work{};
    work.sequence = sequence;
    const SequenceRows q = lengths_q<kTraits>(params).of_varlen(sequence),
                       k = rows_of_keys<kTraits, true>(params, sequence);
    work.first_q = q.first;
    work.first_k = k.first;
    const int32_t len_q = q.length, len_k = k.length;
    const int32_t in_section = section_units(params.section_keys, len_k, params.heads_k, params.bundle_units);
    const SequenceTiles tiles = tiles_of_sequence<kTraits>(params, len_q, len_k);
    const TileOrder order{params.heads_k,
                          tiles.heads_per_kv,
                          tiles.row_blocks,
                          in_section,
                          section_count(params.heads_k, in_section, 1),
                          params.order.last_rows_first};
    const TilePlace place = tile_place(order, t);
    work.head_k = place.unit;
    fill<kTraits>(work, params, place, tiles.heads_log2, len_q, len_k);
    return work;
}

// The tiles of a varlen batch, one sequence after the other; 32 sequences at a time, one a lane. Used by a whole,
// converged warp.
template <WorkTraits kTraits>
class SequenceWindow {
   public:
    struct Place {
        int32_t sequence, tile;
    };

    __device__ explicit SequenceWindow(const ForwardParams& params) : params_(params) {
        if (is_varlen<kTraits>(params)) load();
    }

    // Of all tiles, the first after the window.
    __device__ int32_t end_tile() const { return tiles_before_ + __shfl_sync(~0u, tiles_end_, 31); }

    // The next 32 sequences. false: there are none, and the window stays.
    __device__ bool advance() {
        if (sequences_before_ + 32 >= params_.batch) return false;
        tiles_before_ = end_tile();
        sequences_before_ += 32;
        load();
        return true;
    }

    // Where tile t of the window is.
    __device__ Place find(int32_t t) const {
        const int32_t in_window = t - tiles_before_;
        const int32_t lane = __ffs(static_cast<int32_t>(__ballot_sync(~0u, in_window < tiles_end_))) - 1;
        const int32_t before = __shfl_sync(~0u, tiles_end_, max_i32(lane - 1, 0));
        return {sequences_before_ + lane, in_window - (lane == 0 ? 0 : before)};
    }

    // Of the sequence of a lane.
    __device__ int32_t sequence(int32_t lane) const { return sequences_before_ + lane; }
    __device__ int32_t len_q(int32_t lane) const { return __shfl_sync(~0u, len_q_, lane); }
    __device__ int32_t len_k(int32_t lane) const { return __shfl_sync(~0u, len_k_, lane); }

   private:
    __device__ void load() {
        const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
        const int32_t sequence = sequences_before_ + lane;
        len_q_ = len_k_ = 0;
        if (sequence < params_.batch) {
            len_q_ = lengths_q<kTraits>(params_).of_varlen(sequence).length;
            len_k_ = rows_of_keys<kTraits, true>(params_, sequence).length;
            if constexpr (kTraits.any_keys) len_q_ = rows_of_forward(params_.places, len_q_);
        }
        const SequenceTiles of_sequence = tiles_of_sequence<kTraits>(params_, len_q_, len_k_);
        int32_t tiles = of_sequence.row_blocks * of_sequence.heads_per_kv * params_.heads_k;
        for (int32_t step = 1; step < 32; step *= 2) {
            const int32_t below = __shfl_up_sync(~0u, tiles, step);
            if (lane >= step) tiles += below;
        }
        tiles_end_ = tiles;
    }

    const ForwardParams& params_;
    int32_t sequences_before_ = 0;
    int32_t tiles_before_ = 0;
    // Of this lane's sequence.
    int32_t len_q_, len_k_;
    int32_t tiles_end_ = 0;  // tiles of the window up to its end
};

}  // namespace foveal::sm90
