// The gradients of what is added to the scores are sums of dx = p (dout . v - D) (docs/backward.md): that of a bias
// over the scores that share its element, that of a slope weighted by the distance. Which CTA sums what, and in which
// order; score_sums.cuh does it. Host and device share it.
//
// A result is what one CTA sums in its registers: one element for each dimension that the bias shares, and a tile's
// along those that it has of its own. The summands of a result are query tiles of heads of sequences, each with all the
// keys that it sees, or with the result's own keys. They are summed one after the other; where there are few results
// each has several parts, consecutive summands of about the same number, which the last kernel adds one after the
// other. Both follow from the shapes alone and, where each sequence has results of its own, not from the batch.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "problem/mask.hpp"
#include "sm90/backward/params.hpp"
#include "sm90/backward/tiles.hpp"
#include "sm90/scores/dropout.hpp"

namespace foveal::sm90 {

// Tiles of scores: 64 keys, in one warpgroup's registers, by 64 queries. A warp beside it loads.
inline constexpr int32_t kSumKeys = kWarpgroupRows;
inline constexpr int32_t kSumThreads = kWarpgroupThreads + kWarpThreads;
inline constexpr int32_t kScoreSumsSharedBytes = 88 * 1024;
// Results of a sequence, with their parts, that a GPU is to have at least.
inline constexpr int32_t kSumCtas = 128;

// Scores that a CTA sums: of a query tile, against one tile of keys, or where that is -1 against all.
struct ScoreTiles {
    int32_t sequence, head, query_tile, key_tile;
};

// One of the four dimensions of the scores: sequences, heads, tiles of queries or of keys.
struct SumDimension {
    int32_t pieces = 0;
    bool own = false;  // else the bias shares one element

    FOVEAL_HOST_DEVICE int32_t results() const { return own ? pieces : 1; }
    FOVEAL_HOST_DEVICE int32_t summands() const { return own ? 1 : pieces; }
};

struct BiasSums {
    SumDimension sequences, heads, queries, keys;
    int32_t parts = 1;  // of a result

    // Fewer than 2^30 (support.cpp).
    FOVEAL_HOST_DEVICE int32_t results() const {
        return sequences.results() * heads.results() * queries.results() * keys.results();
    }
    FOVEAL_HOST_DEVICE int32_t summands() const { return sequences.summands() * heads.summands() * queries.summands(); }

    // As many parts as a result should have.
    int32_t wanted_parts() const {
        const int32_t of_sequence = heads.results() * queries.results() * keys.results();
        if (of_sequence == 0 || of_sequence >= kSumCtas || summands() <= 1) return 1;
        return min_i32((kSumCtas + of_sequence - 1) / of_sequence, summands());
    }

    // Where result `result` lies: 0 along shared dimensions.
    FOVEAL_HOST_DEVICE ScoreTiles place(int32_t result) const {
        ScoreTiles at{};
        at.key_tile = result % keys.results();
        result /= keys.results();
        at.query_tile = result % queries.results();
        result /= queries.results();
        at.head = result % heads.results();
        at.sequence = result / heads.results();
        return at;
    }

    // The first summand of a part; that of part `parts` is their end.
    FOVEAL_HOST_DEVICE int32_t first_summand(int32_t part) const {
        return part == 0 ? 0 : static_cast<int32_t>(int64_t{summands()} * part / parts);
    }

    // Summand n of the result at a place.
    FOVEAL_HOST_DEVICE ScoreTiles summand(const ScoreTiles& at, int32_t n) const {
        ScoreTiles tiles = at;
        if (!queries.own) tiles.query_tile = n % queries.pieces;
        n /= queries.summands();
        if (!heads.own) tiles.head = n % heads.pieces;
        if (!sequences.own) tiles.sequence = n / heads.summands();
        if (!keys.own) tiles.key_tile = -1;
        return tiles;
    }
};

// The tiles of keys that a summand visits.
FOVEAL_HOST_DEVICE Range key_tiles_of(const ScoreTiles& tiles, Band band, int32_t len_q) {
    const Range rows{tiles.query_tile * kBackwardQueries, min_i32((tiles.query_tile + 1) * kBackwardQueries, len_q)};
    if (rows.size() == 0) return {0, 0};
    const Range seen = kv_range(band, rows, kSumKeys).visit;
    if (tiles.key_tile < 0) return seen;
    return {max_i32(seen.begin, tiles.key_tile), min_i32(seen.end, tiles.key_tile + 1)};
}

// The bias's gradient in memory.
struct BiasGradient {
    void* data;  // null: not asked
    int64_t batch_stride, row_stride, head_stride, key_stride;
    bool is_f32;  // else of q's type
};

struct ScoreSumsParams {
    BackwardParams backward;
    int32_t rows_q, rows_k;  // dense: of every sequence
    BiasSums sums;
    BiasGradient dbias;
    float* bias_parts;  // [parts, as the elements of dbias lie side by side]; null where results have one part
    float* dalibi;      // [h_q] or [b, h_q]; null: not asked
    int64_t dalibi_batch_stride, dalibi_head_stride;
    float* slope_parts;  // [slots, h_q]
    bool of_slopes;      // what a launch sums: the slopes' gradient, else the bias's
    Dropout dropout;

    // Elements of dbias along a dimension.
    FOVEAL_HOST_DEVICE int32_t elements_q() const { return sums.queries.own ? rows_q : 1; }
    FOVEAL_HOST_DEVICE int32_t elements_k() const { return sums.keys.own ? rows_k : 1; }
    FOVEAL_HOST_DEVICE int64_t elements() const {
        return int64_t{sums.sequences.results()} * sums.heads.results() * elements_q() * elements_k();
    }
    FOVEAL_HOST_DEVICE int32_t slope_results() const {
        return dalibi == nullptr ? 0 : (dalibi_batch_stride != 0 ? backward.sequences.batch : 1) * backward.heads_q;
    }
};

}  // namespace foveal::sm90
