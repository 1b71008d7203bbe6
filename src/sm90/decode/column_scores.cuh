// The columns of a decode: which query and head each is, which keys it sees, and what its scores are beyond
// scale * q.k (contract 1.2).
//
// Column c of a KV head is query c / heads_per_kv and query head c % heads_per_kv of those that share it.
#pragma once

#include <cmath>
#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/scores/alibi.cuh"
#include "sm90/scores/base_2.hpp"

namespace foveal::sm90 {

// Of those of a piece.
struct PieceColumns {
    int32_t head_k;
    int32_t first;  // of the KV head's columns
    int32_t count;  // that exist; 0 or less: none

    // columns: of the tile.
    __device__ __forceinline__ PieceColumns(const DecodeParams& params, const DecodeWork& work, int32_t columns) {
        head_k = work.head / params.by_column_parts;
        first = (work.head - head_k * params.column_parts + work.part) * columns;
        count = min_i32(columns, work.sequence.len_q * params.heads_per_kv - first);
    }
    __device__ __forceinline__ int32_t query(const DecodeParams& params, int32_t column) const {
        return (first + column) / params.by_heads_per_kv;
    }
    __device__ __forceinline__ int32_t head_q(const DecodeParams& params, int32_t column) const {
        return head_k * params.heads_per_kv + first + column - query(params, column) * params.heads_per_kv;
    }
};

// Of a thread: two of every eight (strip.cuh). What is asked of a column is in shared memory, since registers are few:
// for every block if there are options, else for those at the ends of what is seen.
template <DecodeConfig kConfig>
class ColumnScores {
    static constexpr int32_t kOctets = kConfig.tile.octets(), kColumns = kOctets * kOctetColumns;

   public:
    // keys: for all columns, of the warp.
    __device__ __forceinline__ ColumnScores(const DecodeParams& params, const DecodeWork& work,
                                            const PieceColumns& columns, ColumnKeys (&keys)[kColumns], int32_t lane)
        : params_(params), keys_(keys), len_k_(work.sequence.len_k), off_(work.sequence.off) {
        const Band band = band_of(work.sequence, params.window);
        const int32_t last = max_i32(work.sequence.len_q - 1, 0), last_column = max_i32(columns.count - 1, 0);
        // The ends of what a query sees ascend with it.
        seen_by_all_ = {visible_keys(band, min_i32(columns.query(params, last_column), last)).begin,
                        visible_keys(band, min_i32(columns.query(params, 0), last)).end};
        if constexpr (kConfig.has_options()) {
            if (params.tree != nullptr) {
                len_q_ = work.sequence.len_q;
                tree_ = params.tree + work.number * params.tree_batch_stride +
                        int64_t{work.sequence.first_q} * params.tree_row_stride;
            }
        }
        __syncwarp();  // all have read those of the piece before
        if (lane < kColumns) {
            const int32_t column = min_i32(lane, last_column), query = min_i32(columns.query(params, column), last);
            const float slope = kConfig.has_options() ? slope_of(work, columns.head_q(params, column)) : 0.0f;
            keys[lane] = {visible_keys(band, query), query, slope};
        }
        __syncwarp();
    }

    // From q.k of 16 keys, the first of which is `strip`, to what exponentiate() takes (strip.cuh).
    __device__ __forceinline__ void apply(float (&s)[kOctets][4], int32_t strip, int32_t lane) const {
        const int32_t first = strip + lane / 4;
        if constexpr (kConfig.has_options()) {
#pragma unroll
            for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
                for (int32_t i = 0; i < 4; ++i)
                    s[octet][i] = to_base_2(score(s[octet][i], first + i / 2 * 8, of(octet, i % 2, lane)));
            if (tree_ != nullptr && strip + kStripKeys > len_k_ - len_q_) hide_by_tree(s, first, lane);
        }
        if (seen_by_all_.begin <= strip && strip + kStripKeys <= seen_by_all_.end) return;
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t e = 0; e < 2; ++e) {
                const Range keys = of(octet, e, lane).seen;
                if (!keys.contains(first)) s[octet][e] = -INFINITY;
                if (!keys.contains(first + 8)) s[octet][2 + e] = -INFINITY;
            }
    }

   private:
    __device__ __forceinline__ const ColumnKeys& of(int32_t octet, int32_t e, int32_t lane) const {
        return keys_[octet * kOctetColumns + lane % 4 * 2 + e];
    }

    __device__ __forceinline__ float slope_of(const DecodeWork& work, int32_t head) const {
        const ScoreOptions& options = params_.scores;
        if (options.alibi_slopes == nullptr) return 0.0f;
        const float slope =
            options.alibi_slopes[work.number * options.alibi_batch_stride + int64_t{head} * options.alibi_head_stride];
        return finite_slope(slope, work.sequence.len_q, work.sequence.len_k);
    }

    // key: the thread's first.
    __device__ __forceinline__ void hide_by_tree(float (&s)[kOctets][4], int32_t key, int32_t lane) const {
        const int32_t first_node = len_k_ - len_q_, nodes = min_i32(len_q_, params_.tree_keys);
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) {
                const int32_t node = key + i / 2 * 8 - first_node;
                if (node < 0 || node >= nodes) continue;
                const uint32_t word = __ldg(tree_ + of(octet, i % 2, lane).query * params_.tree_row_stride + node / 32);
                if ((word >> node % 32 & 1) == 0) s[octet][i] = -INFINITY;
            }
    }

    // In natural units.
    __device__ __forceinline__ float score(float qk, int32_t key, const ColumnKeys& column) const {
        const ScoreOptions& options = params_.scores;
        float x = qk, factor = options.scale;
        if (options.softcap > 0) {
            const float argument =
                options.inverse_softcap > 0 ? x * options.scale * options.inverse_softcap : x * options.cap_argument;
            x = options.softcap * tanhf(argument);
            factor = 1.0f;
        }
        if (options.alibi_slopes == nullptr) return x * factor;
        const auto distance = static_cast<float>(column.query + off_ - key);
        return fmaf(x, factor, -column.slope * fabsf(distance));
    }

    const DecodeParams& params_;
    const ColumnKeys (&keys_)[kColumns];
    const int32_t len_k_, off_;
    Range seen_by_all_;
    const uint32_t* tree_ = nullptr;  // of the sequence's first query
    int32_t len_q_ = 0;               // where there is a tree
};

}  // namespace foveal::sm90
