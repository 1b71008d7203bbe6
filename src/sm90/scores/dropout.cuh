// Dropout in the registers of a warp (dropout.hpp says which thread draws what): P, and what goes back through it.
#pragma once

#include <cstdint>

#include "sm90/ptx/warp.cuh"
#include "sm90/scores/dropout.hpp"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// Of the call, as the state says it now: not before the kernel before has ended.
__device__ __forceinline__ PhiloxKey read_dropout_key(const Dropout& dropout) {
    const PhiloxKey key = dropout_key(dropout.state);
    return {{uniform(key.word[0]), uniform(key.word[1])}};
}

// What a thread keeps of it: nothing where the kernel drops none, whose registers then are dealt out as if there were
// no such thing.
template <bool kDrops>
struct ThreadDropout {
    explicit __device__ __forceinline__ ThreadDropout(const Dropout&) {}
};
template <>
struct ThreadDropout<true> {
    const Dropout& call;
    PhiloxKey key;
    explicit __device__ __forceinline__ ThreadDropout(const Dropout& dropout)
        : call(dropout), key(read_dropout_key(dropout)) {}
};

// Of a warp's fragment. key, query: the warp's first. Where rows are keys, used by a whole, converged warp.
template <int32_t kColumns, bool kOfKeys>
__device__ __forceinline__ KeptScores<kColumns, kOfKeys> kept_scores(PhiloxKey dropout_key, uint32_t threshold,
                                                                     uint32_t head, int32_t key, int32_t query) {
    const int32_t lane = ptx::lane_id();
    const uint32_t thresholds = threshold_pair(threshold);
    KeptScores<kColumns, kOfKeys> kept;
    if constexpr (kOfKeys) {
        const uint32_t drawn = KeptScores<kColumns, kOfKeys>::drawn(dropout_key, thresholds, head, key, query, lane);
        kept.join(drawn, __shfl_xor_sync(~0u, drawn, kDropoutLane), lane);
    } else {
        kept.draw(dropout_key, thresholds, head, query, key, lane);
    }
    return kept;
}

// What comes back to the scores: dP where they are kept, times 1 / (1 - p), less delta.
template <class Kept, int32_t kScores>
__device__ __forceinline__ void add_kept(float (&dp)[kScores], const float (&neg_delta)[kScores], const Kept& kept,
                                         float scale) {
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i) dp[i] = fmaf(dp[i], kept.keeps(i) ? scale : 0.0F, neg_delta[i]);
}

}  // namespace foveal::sm90
