// The kernel after the backward kernel: dQ's fp32 sums are scaled and rounded. A CTA takes 64 rows of one head; each of
// its threads has what one thread of the backward kernel's consumers has staged (consumer.cuh). Memory is the bound.
// The first CTAs, one for each head, sum the gradients of the sinks instead, if they are asked.
#pragma once

#include <cstdint>

#include "sm90/backward/await.cuh"
#include "sm90/backward/cta_sum.cuh"
#include "sm90/backward/epilogue.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/params.hpp"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

template <class Instance>
__device__ __forceinline__ void finish_rows(const BackwardParams& params, int32_t slot, int32_t head) {
    constexpr BackwardTile kTile = Instance::kConfig.tile;
    constexpr int32_t kSums = Fragment::size(kTile.dq_columns());
    const BackwardSequences& sequences = params.sequences;
    const int32_t b = query_slots().sequence_at(sequences.q, sequences.batch, slot);
    const BackwardSequence sequence = sequences.of(b);
    const int32_t query_tile = slot - sequence.slot;
    if (query_tile * kBackwardQueries >= sequence.q.length) return;
    const auto warpgroup = static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads;
    const auto thread = static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads;
    float sums[kSums] = {};
    if (sees_keys(sequence.band, query_tile, sequence.q.length)) {
        const int64_t part = params.unit(slot, head) * kBackwardConsumers + warpgroup;
        const auto* from = reinterpret_cast<const float4*>(params.workspace.dq_sums + part * kTile.dq_elements());
#pragma unroll
        for (int32_t i = 0; i < kSums; i += 4) {
            const float4 four = from[i / 4 * kWarpgroupThreads + thread];
            sums[i] = four.x, sums[i + 1] = four.y, sums[i + 2] = four.z, sums[i + 3] = four.w;
        }
    }
    const int32_t row = query_tile * kBackwardQueries + thread / kWarpThreads * kWarpRows;
    const int32_t column = warpgroup * kTile.dq_columns();
    BackwardOut dq = params.dq;
    dq.data = static_cast<uint16_t*>(dq.data) + column;
    store_gradient<Instance::kConfig.dtype>(
        sums, dq, {sequences.is_varlen() ? 0 : b, sequence.q.first, head, row, sequence.q.length},
        params.head_dim - column, params.scale);
}

__device__ __forceinline__ void finish_sink(const BackwardParams& params, int32_t head) {
    float sum = 0;
    for (auto slot = static_cast<int32_t>(threadIdx.x); slot < params.sequences.slots; slot += kFinishThreads)
        sum += params.workspace.sink_parts[params.unit(slot, head)];
    sum = cta_sum<kFinishThreads>(sum);
    if (threadIdx.x == 0) params.dsinks[head * params.dsinks_head_stride] = sum;
}

template <class Instance>
__global__ void __launch_bounds__(kFinishThreads) finish_backward(const __grid_constant__ BackwardParams params) {
    await_kernel_before();
    const int32_t sinks = params.dsinks != nullptr ? params.heads_q : 0;
    const int32_t unit = static_cast<int32_t>(blockIdx.x) - sinks;
    const int32_t last = params.sequences.slots - 1;  // whose sums are the youngest, and so in L2
    if (unit < 0)
        finish_sink(params, unit + sinks);
    else
        finish_rows<Instance>(params, last - unit / params.heads_q, unit % params.heads_q);
}

template <class Instance>
const void* finish_kernel() {
    return reinterpret_cast<const void*>(&finish_backward<Instance>);
}

}  // namespace foveal::sm90
