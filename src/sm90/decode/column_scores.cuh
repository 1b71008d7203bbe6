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

    __device__ __forceinline__ PieceColumns(const DecodeParams& params, int32_t head, int32_t len_q, int32_t columns) {
        head_k = head / params.by_column_parts;
        first = (head - head_k * params.column_parts) * columns;
        count = min_i32(columns, len_q * params.heads_per_kv - first);
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
        : params_(params) {
        const Band band = band_of(work.sequence, params.window);
        const int32_t last = max_i32(work.sequence.len_q - 1, 0);
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
    Range seen_by_all_;
    Range seen_[kOctets][2];
    int32_t position_[kConfig.has_options() ? kOctets : 1][2];
    float slope_[kConfig.has_options() ? kOctets : 1][2];
};

}  // namespace foveal::sm90
