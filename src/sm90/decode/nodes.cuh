// Nodes of a sequence's tree (split.hpp): how two become one, and how a CTA tells others of those it has worked out.
#pragma once

#include <cfloat>
#include <cstdint>

#include "sm90/decode/params.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/split.hpp"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/global_memory.cuh"
#include "sm90/ptx/warp.cuh"

namespace foveal::sm90 {

// The reference of what holds no keys: below every score, and yet a number.
inline constexpr float kNoKeys = -FLT_MAX;

// What two parts of a column are multiplied by before they are added. References are whole numbers, so these are powers
// of two, which lose nothing.
struct Factors {
    float left, right;
};
__device__ __forceinline__ Factors factors_of(float left, float right) {
    const float larger = fmaxf(left, right);
    return {ptx::ex2(left - larger), ptx::ex2(right - larger)};
}
// Spelled out, so that wherever two nodes become one, they become the same one. To a node and a missing one this gives
// the node, bit for bit: the missing one's values are -0 and its sums 0.
__device__ __forceinline__ float joined(float left, float right, const Factors& factors) {
    return __fmaf_rn(left, factors.left, __fmul_rn(right, factors.right));
}

// One node's share of a thread: of every fourth column from its warp's on, values() neighbouring values. The sums are
// the same in all lanes.
template <DecodeTile kTile>
struct Node {
    static constexpr int32_t kColumns = kTile.warp_columns(), kValues = kTile.values();
    float values[kColumns][kValues];
    float reference[kColumns], rounded[kColumns], exact[kColumns];
};

// The sums of one column with those of the column's left half.
__device__ __forceinline__ Factors join_sums(float left_reference, float left_rounded, float left_exact,
                                             float& reference, float& rounded, float& exact) {
    const Factors factors = factors_of(left_reference, reference);
    rounded = joined(left_rounded, rounded, factors);
    exact = joined(left_exact, exact, factors);
    reference = fmaxf(left_reference, reference);
    return factors;
}

// kCount floats at a time, four or two.
template <int32_t kCount>
__device__ __forceinline__ void store_floats(float* to, const float (&x)[kCount]) {
    constexpr int32_t kVector = kCount < 4 ? kCount : 4;
    static_assert(kVector == 2 || kVector == 4);
#pragma unroll
    for (int32_t i = 0; i < kCount; i += kVector) {
        float vector[kVector];
#pragma unroll
        for (int32_t e = 0; e < kVector; ++e) vector[e] = x[i + e];
        ptx::store_relaxed(to + i, vector);
    }
}
template <int32_t kCount>
__device__ __forceinline__ void load_floats_if(float (&x)[kCount], const float* from, bool exists) {
    constexpr int32_t kVector = kCount < 4 ? kCount : 4;
    static_assert(kVector == 2 || kVector == 4);
#pragma unroll
    for (int32_t i = 0; i < kCount; i += kVector) {
        float vector[kVector];
#pragma unroll
        for (int32_t e = 0; e < kVector; ++e) vector[e] = x[i + e];
        ptx::load_relaxed_if(vector, from + i, exists);
#pragma unroll
        for (int32_t e = 0; e < kVector; ++e) x[i + e] = vector[e];
    }
}

// Where a thread's share of a node lies in the workspace: its values in the warp's k-th column, and the column's sums.
template <DecodeTile kTile>
__device__ __forceinline__ float* values_in(float* node, int32_t k, int32_t thread) {
    return node + (k * kWarpgroupThreads + thread) * kTile.values();
}
template <DecodeTile kTile>
__device__ __forceinline__ float* sums_in(float* node, int32_t column) {
    return node + kTile.columns * kTile.head_dim + 4 * column;
}

// columns: that exist.
template <DecodeTile kTile>
__device__ __forceinline__ void store_node(float* node, const Node<kTile>& from, int32_t columns, int32_t thread) {
    const int32_t warp = thread / kWarpThreads, lane = thread % kWarpThreads;
#pragma unroll
    for (int32_t k = 0; k < kTile.warp_columns(); ++k) {
        const int32_t column = warp + kWarpgroupWarps * k;
        if (column >= columns) continue;
        store_floats(values_in<kTile>(node, k, thread), from.values[k]);
        const float sums[4] = {from.reference[k], from.rounded[k], from.exact[k], 0.0f};
        if (lane == 0) store_floats(sums_in<kTile>(node, column), sums);
    }
}

// Finds, by arithmetic alone, which nodes of a sequence the CTAs leave in the workspace, and where. One warp.
template <DecodeTile kTile>
__device__ __forceinline__ void map_nodes(NodeMap& map, const Deal& deal, const DecodeParams& params,
                                          const DecodeWork& work, int32_t lane) {
    const int32_t blocks = work.seen.counted_blocks();
    const Leaves leaves = leaves_of(blocks, kTile.levels);
    const uint32_t teams = params.teams.count, first = first_team_of(work.before, deal),
                   after = work.before + static_cast<uint32_t>(blocks);
    const auto piece_at = [&](uint32_t team) {
        return team < teams ? piece_of(team, work.before, blocks, leaves, deal) : Piece{0, 0};
    };
    for (int32_t i = lane; i < 1 << kTile.levels; i += kWarpThreads) map.places[i] = -1;
    // How far apart pieces begin, at least.
    uint32_t begins = 0, end = first;
    do {
        const Piece piece = piece_at(end + static_cast<uint32_t>(lane));
        if (!piece.is_empty()) begins |= static_cast<uint32_t>(piece.begin >> leaves.log2_blocks);
        end += kWarpThreads;
    } while (end < teams && bound_of(end, deal) < after);
    begins = __reduce_or_sync(~0u, begins);
    const int32_t log2_leaves = begins != 0 ? trailing_zeros(begins) : 0;
    __syncwarp();
    for (uint32_t i = first; i < end; i += kWarpThreads) {
        const uint32_t team = i + static_cast<uint32_t>(lane);
        const Piece piece = piece_at(team);
        if (piece.is_empty()) continue;
        const int32_t set = params.sets.set_of(static_cast<int32_t>(team), work.head, piece.begin == 0);
        const int32_t last = (piece.end + (1 << leaves.log2_blocks) - 1) >> leaves.log2_blocks;
        int32_t leaf = piece.begin >> leaves.log2_blocks;
        for (int32_t n = 0; leaf < last; ++n, leaf = end_of_node(leaf, last, leaves.count))
            map.places[leaf >> log2_leaves] = params.sets.node(set, n);
    }
    if (lane == 0) map.log2_leaves = log2_leaves;
    __syncwarp();
}

}  // namespace foveal::sm90
