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

// Of a thread: two of every eight (strip.cuh).
template <DecodeConfig kConfig>
class ColumnScores {
    static constexpr int32_t kOctets = kConfig.tile.octets();

   public:
    __device__ __forceinline__ ColumnScores(const DecodeParams& params, const DecodeWork& work,
                                            const PieceColumns& columns, int32_t lane)
        : params_(params), first_node_(work.sequence.len_k - work.sequence.len_q) {
        const Band band = band_of(work.sequence, params.window);
        const int32_t last = max_i32(work.sequence.len_q - 1, 0);
        tree_nodes_ = min_i32(work.sequence.len_q, params.tree_keys);
        // The ends of what a query sees ascend with it.
        seen_by_all_ = {
            visible_keys(band, min_i32(columns.query(params, max_i32(columns.count - 1, 0)), last)).begin,
            visible_keys(band, min_i32(columns.query(params, 0), last)).end};
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t e = 0; e < 2; ++e) {
                const int32_t column = min_i32(octet * kOctetColumns + lane % 4 * 2 + e, max_i32(columns.count - 1, 0));
                const int32_t query = min_i32(columns.query(params, column), last);
                seen_[octet][e] = visible_keys(band, query);
                if constexpr (kConfig.has_options()) {
                    position_[octet][e] = query + work.sequence.off;
                    tree_[octet][e] = tree_of(work, query);
                    slope_[octet][e] = slope_of(work, columns.head_q(params, column));
                }
            }
    }

    // From q.k of 16 keys, the first of which is `strip`, to what exponentiate() takes (strip.cuh).
    __device__ __forceinline__ void apply(float (&s)[kOctets][4], int32_t strip, int32_t lane) const {
        const bool all_seen = seen_by_all_.begin <= strip && strip + kStripKeys <= seen_by_all_.end;
        if constexpr (kConfig.has_options()) {
#pragma unroll
            for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
                for (int32_t i = 0; i < 4; ++i)
                    s[octet][i] = to_base_2(score(s[octet][i], strip + lane / 4 + i / 2 * 8, octet, i % 2));
            if (params_.tree != nullptr && strip + kStripKeys > first_node_) hide_by_tree(s, strip + lane / 4);
        }
        if (all_seen) return;
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i)
                if (!seen_[octet][i % 2].contains(strip + lane / 4 + i / 2 * 8)) s[octet][i] = -INFINITY;
    }

   private:
    __device__ __forceinline__ float slope_of(const DecodeWork& work, int32_t head) const {
        const ScoreOptions& options = params_.scores;
        if (options.alibi_slopes == nullptr) return 0.0f;
        const float slope =
            options.alibi_slopes[work.number * options.alibi_batch_stride + int64_t{head} * options.alibi_head_stride];
        return finite_slope(slope, work.sequence.len_q, work.sequence.len_k);
    }

    // The row of the tree mask; null: there is none.
    __device__ __forceinline__ const uint32_t* tree_of(const DecodeWork& work, int32_t query) const {
        if (params_.tree == nullptr) return nullptr;
        return params_.tree + work.number * params_.tree_batch_stride +
               int64_t{work.sequence.first_q + query} * params_.tree_row_stride;
    }

    // key: the thread's first.
    __device__ __forceinline__ void hide_by_tree(float (&s)[kOctets][4], int32_t key) const {
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) {
                const int32_t node = key + i / 2 * 8 - first_node_;
                const bool has_bit = node >= 0 && node < tree_nodes_;
                if (has_bit && (__ldg(tree_[octet][i % 2] + node / 32) >> (node % 32) & 1) == 0)
                    s[octet][i] = -INFINITY;
            }
    }

    // In natural units.
    __device__ __forceinline__ float score(float qk, int32_t key, int32_t octet, int32_t e) const {
        const ScoreOptions& options = params_.scores;
        float x = qk, factor = options.scale;
        if (options.softcap > 0) {
            const float argument =
                options.inverse_softcap > 0 ? x * options.scale * options.inverse_softcap : x * options.cap_argument;
            x = options.softcap * tanhf(argument);
            factor = 1.0f;
        }
        if (options.alibi_slopes == nullptr) return x * factor;
        const auto distance = static_cast<float>(position_[octet][e] - key);
        return fmaf(x, factor, -slope_[octet][e] * fabsf(distance));
    }

    const DecodeParams& params_;
    const int32_t first_node_;  // of the tree: a key
    int32_t tree_nodes_ = 0;
    Range seen_by_all_;
    Range seen_[kOctets][2];
    int32_t position_[kConfig.has_options() ? kOctets : 1][2];
    float slope_[kConfig.has_options() ? kOctets : 1][2];
    const uint32_t* tree_[kConfig.has_options() ? kOctets : 1][2];
};

}  // namespace foveal::sm90
