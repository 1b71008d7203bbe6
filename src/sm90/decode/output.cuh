// The end of a sequence: columns are normalised, rounded and written, and with them their log-sum-exp.
#pragma once

#include <cmath>
#include <cstdint>

#include "sm90/decode/column_scores.cuh"
#include "sm90/decode/nodes.cuh"
#include "sm90/decode/params.hpp"
#include "sm90/scores/base_2.hpp"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {

struct ColumnEnd {
    float factor;  // by which its values become the output
    float lse;
    bool is_empty;  // it sees no key: the output is 0
};

// exact: the sum of the exponentials; rounded: that of those which were multiplied.
template <bool kIsWide>
__device__ __forceinline__ ColumnEnd end_of_column(float reference, float rounded, float exact, const float* sink) {
    const auto to_natural = [](float x) { return kIsWide ? from_base_2(x) : x * static_cast<float>(1 / kLog2E); };
    if (exact == 0.0f && rounded == 0.0f) return {0.0f, sink != nullptr ? *sink : -INFINITY, true};
    if (sink == nullptr) return {__frcp_rn(rounded), to_natural(reference + __log2f(exact)), false};
    const float sink_log2 = to_base_2(*sink), larger = fmaxf(reference, ceilf(sink_log2)),
                scale = ptx::ex2(reference - larger), sink_part = ptx::ex2(sink_log2 - larger);
    return {scale * __frcp_rn(fmaf(rounded, scale, sink_part)),
            to_natural(larger + __log2f(fmaf(exact, scale, sink_part))), false};
}

// kCount neighbours, as 16-bit numbers.
template <DType kType, int32_t kCount>
__device__ __forceinline__ void store_rounded(uint16_t* to, const float (&x)[kCount], const ColumnEnd& end) {
    uint32_t pairs[kCount / 2];
#pragma unroll
    for (int32_t i = 0; i < kCount / 2; ++i)
        pairs[i] = end.is_empty ? 0u : Format<kType>::pack(x[2 * i] * end.factor, x[2 * i + 1] * end.factor);
    if constexpr (kCount == 2) *reinterpret_cast<uint32_t*>(to) = pairs[0];
    if constexpr (kCount == 4) *reinterpret_cast<uint2*>(to) = {pairs[0], pairs[1]};
    if constexpr (kCount == 8) *reinterpret_cast<uint4*>(to) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    static_assert(kCount <= 8);
}

// As far as they exist: `columns` of them, a multiple of eight.
template <DType kType, int32_t kCount>
__device__ __forceinline__ void store_columns(uint16_t* to, const float (&x)[kCount], const ColumnEnd& end,
                                              int32_t columns) {
    constexpr int32_t kAtOnce = kCount < 8 ? kCount : 8;
#pragma unroll
    for (int32_t i = 0; i < kCount; i += kAtOnce) {
        float part[kAtOnce];
#pragma unroll
        for (int32_t e = 0; e < kAtOnce; ++e) part[e] = x[i + e];
        if (i < columns) store_rounded<kType>(to + i, part, end);
    }
}

template <DecodeConfig kConfig>
__device__ __forceinline__ void write_output(const DecodeParams& params, const DecodeWork& work,
                                             const PieceColumns& columns, const Node<kConfig.tile>& node,
                                             int32_t thread) {
    constexpr DecodeTile kTile = kConfig.tile;
    const int32_t warp = thread / kWarpThreads, lane = thread % kWarpThreads, channel = lane * kTile.values();
#pragma unroll
    for (int32_t k = 0; k < kTile.warp_columns(); ++k) {
        const int32_t column = warp + kWarpgroupWarps * k;
        if (column >= columns.count) continue;
        const int64_t row = work.sequence.first_q + columns.query(params, column),
                      head = columns.head_q(params, column);
        const float* sink = params.sinks == nullptr ? nullptr : params.sinks + head * params.scores.sinks_head_stride;
        const ColumnEnd end =
            end_of_column<kConfig.has_options()>(node.reference[k], node.rounded[k], node.exact[k], sink);
        uint16_t* out = static_cast<uint16_t*>(params.out) + work.number * params.out_batch_stride +
                        row * params.out_row_stride + head * params.out_head_stride + channel;
        store_columns<kConfig.dtype>(out, node.values[k], end, params.v.columns - channel);
        if (params.lse != nullptr && lane == 0)
            params.lse[work.number * params.lse_batch_stride + head * params.lse_head_stride + row] = end.lse;
    }
}

}  // namespace foveal::sm90
