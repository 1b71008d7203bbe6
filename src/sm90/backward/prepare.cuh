// The kernel before the backward kernel:
//   - its first CTAs list the tasks (schedule.hpp), a few CTAs for each sequence, and zero dK and dV of keys that no
//     query sees and that belong to no task;
//   - the others take 64 query rows of one head each: -lse and -delta in the form in which accumulators start, and no
//     arrivals yet.
// Memory is the bound of it: O and dO are read once.
#pragma once

#include <cstdint>

#include "sm90/backward/await.cuh"
#include "sm90/backward/cta_sum.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/params.hpp"
#include "sm90/backward/schedule.hpp"
#include "sm90/tile/format.cuh"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// ---- tasks ----------------------------------------------------------------------------------------------------------

// Zeros for rows [rows.begin, rows.end) of a sequence, all heads. part: of kListCtas CTAs.
__device__ __forceinline__ void zero_rows(const BackwardParams& params, const BackwardOut& out, int32_t columns,
                                          int32_t batch, int32_t first_row, Range rows, int32_t part) {
    if (out.data == nullptr) return;
    const int32_t vectors = columns / kVectorColumns, row_vectors = params.heads_k * vectors;
    const int64_t all = int64_t{rows.size()} * row_vectors;
    for (int64_t i = part * kPrepareThreads + static_cast<int32_t>(threadIdx.x); i < all;
         i += kListCtas * kPrepareThreads) {
        const int64_t row = first_row + rows.begin + i / row_vectors;
        const auto in_row = static_cast<int32_t>(i % row_vectors);
        auto* to = static_cast<uint16_t*>(out.data) + batch * out.batch_stride + row * out.row_stride +
                   in_row / vectors * out.head_stride + in_row % vectors * kVectorColumns;
        *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
    }
}

__device__ __forceinline__ void zero_unseen_keys(const BackwardParams& params, const BackwardSequence& sequence,
                                                 int32_t batch, int32_t part) {
    const Range tiles = seen_key_tiles(sequence.seen);
    const int32_t in_maps = params.sequences.is_varlen() ? 0 : batch, length = sequence.k.length;
    const auto zero = [&](Range rows) {
        zero_rows(params, params.dk, params.head_dim, in_maps, sequence.k.first, rows, part);
        zero_rows(params, params.dv, params.head_dim_v, in_maps, sequence.k.first, rows, part);
    };
    zero({0, min_i32(tiles.begin * kBackwardKeys, length)});
    zero({tiles.end * kBackwardKeys, length});
}

// Tasks of the sequences before this one, where they have lengths of their own.
__device__ __forceinline__ int32_t tasks_before(const BackwardParams& params, int32_t batch) {
    int32_t before = 0;
    for (auto b = static_cast<int32_t>(threadIdx.x); b < batch; b += kPrepareThreads)
        before += seen_key_tiles(params.sequences.of(b).seen).size() * params.heads_k;
    return cta_sum<kPrepareThreads>(before);
}

// Part `part`, of kListCtas, of a sequence.
__device__ __forceinline__ void list_tasks(const BackwardParams& params, int32_t batch, int32_t part) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const BackwardSequence sequence = params.sequences.of(batch);
    const bool alike = params.sequences.are_alike();
    const TaskOrder order = task_order(seen_key_tiles(sequence.seen), params.heads_k, alike);
    const int32_t before = alike ? batch * order.tasks() : tasks_before(params, batch);
    for (int32_t t = part * kPrepareThreads + thread; t < order.tasks(); t += kListCtas * kPrepareThreads) {
        const TaskPlace place = task_place(order, t);
        const int32_t key = (seen_key_tiles(sequence.seen).begin + place.key_tile) * kBackwardKeys;
        const int32_t at = alike ? place_among_alike(order, place, batch, params.sequences.batch) : before + t;
        params.workspace.tasks[at] =
            task_of(params.sequences, sequence, batch, place.head_k, key, kBackwardKeys, place.ascends);
    }
    if (part == 0 && thread == 0) {
        if (batch == 0) *params.workspace.next_task = 0;
        if (batch + 1 == params.sequences.batch) *params.workspace.task_count = before + order.tasks();
    }
    zero_unseen_keys(params, sequence, batch, part);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

template <DType kType>
__device__ __forceinline__ const uint4* row_vectors_of(const BackwardIn& in, int32_t batch, int64_t row, int32_t head) {
    return reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(in.data) + batch * in.batch_stride +
                                          row * in.row_stride + head * in.head_stride);
}

template <DType kType>
__device__ __forceinline__ float dot(uint4 a, uint4 b, float sum) {
    const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
        const float2 x = Format<kType>::unpack(as[i]), y = Format<kType>::unpack(bs[i]);
        sum = fmaf(x.y, y.y, fmaf(x.x, y.x, sum));
    }
    return sum;
}

// A query tile of one head: as many threads share a row as it has vectors of 16 bytes, or a warp does.
template <DType kType, int32_t kHeadDim>
__device__ __forceinline__ void prepare_rows(const BackwardParams& params, int32_t slot, int32_t head) {
    constexpr int32_t kVectors = kHeadDim / kVectorColumns;
    constexpr int32_t kRowThreads = kVectors < kWarpThreads ? kVectors : kWarpThreads;
    constexpr int32_t kRowsAtOnce = kPrepareThreads / kRowThreads;
    const BackwardSequences& sequences = params.sequences;
    const int32_t b = query_slots().sequence_at(sequences.q, sequences.batch, slot),
                  batch = sequences.is_varlen() ? 0 : b;
    const BackwardSequence sequence = sequences.of(b);
    const SequenceRows rows = sequence.q;
    const int32_t first = (slot - sequence.slot) * kBackwardQueries;
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int64_t unit = params.unit(slot, head);
    const bool wants_dsinks = params.dsinks != nullptr;
    if (first >= rows.length) {
        if (wants_dsinks && thread == 0) params.workspace.sink_parts[unit] = 0;
        return;
    }
    if (thread < kBackwardConsumers) params.workspace.arrivals[unit * kBackwardConsumers + thread] = 0;
    // Each of the first threads has a row's log-sum-exp; D comes from all. All loads precede what waits for one.
    const bool has_row = thread < min_i32(kBackwardQueries, rows.length - first);
    const int64_t own_row = rows.first + first + thread;
    float lse = -INFINITY, dlse = 0, sink = 0;
    if (has_row) {
        lse = params.lse[batch * params.lse_batch_stride + head * params.lse_head_stride + own_row];
        if (params.dlse != nullptr)
            dlse = params.dlse[batch * params.dlse_batch_stride + head * params.dlse_head_stride + own_row];
        if (wants_dsinks) sink = params.sinks[head * params.sinks_head_stride];
    }
    __shared__ float products[kBackwardQueries];
    constexpr int32_t kRounds = kBackwardQueries / kRowsAtOnce, kOwn = kVectors / kRowThreads;
    const int32_t vector = thread % kRowThreads;
    uint4 out[kRounds][kOwn], dout[kRounds][kOwn];
#pragma unroll
    for (int32_t i = 0; i < kRounds; ++i)
#pragma unroll
        for (int32_t n = 0; n < kOwn; ++n) {
            const int32_t row = first + i * kRowsAtOnce + thread / kRowThreads, v = vector + n * kRowThreads;
            // Where a row sees no key, dO may be anything.
            const bool counts = sequence.seeing.contains(row) && v * kVectorColumns < params.head_dim_v;
            out[i][n] = dout[i][n] = uint4{0, 0, 0, 0};
            if (!counts) continue;
            out[i][n] = row_vectors_of<kType>(params.out, batch, rows.first + row, head)[v];
            dout[i][n] = row_vectors_of<kType>(params.dout, batch, rows.first + row, head)[v];
        }
#pragma unroll
    for (int32_t i = 0; i < kRounds; ++i) {
        float product = 0;
#pragma unroll
        for (int32_t n = 0; n < kOwn; ++n) product = dot<kType>(out[i][n], dout[i][n], product);
#pragma unroll
        for (int32_t distance = kRowThreads / 2; distance > 0; distance /= 2)
            product += __shfl_xor_sync(~0u, product, distance);
        if (vector == 0) products[i * kRowsAtOnce + thread / kRowThreads] = product;
    }
    __syncthreads();
    float dsink = 0;
    if (thread < kBackwardQueries) {
        const bool counts = lse != -INFINITY;
        const float delta = counts ? products[thread] - dlse : 0.0F;
        params.workspace.neg_lse[unit * kBackwardQueries + thread] = counts ? -lse * params.inverse_scale : -INFINITY;
        params.workspace.neg_delta[unit * kBackwardQueries + thread] =
            sequence.seeing.contains(first + thread) ? -delta : 0.0F;
        if (wants_dsinks && counts) dsink = -expf(sink - lse) * delta;
    }
    if (!wants_dsinks) return;
    dsink = cta_sum<kPrepareThreads>(dsink);
    if (thread == 0) params.workspace.sink_parts[unit] = dsink;
}

template <class Instance>
__global__ void __launch_bounds__(kPrepareThreads) prepare_backward(const __grid_constant__ BackwardParams params) {
    await_kernel_before();
    const auto cta = static_cast<int32_t>(blockIdx.x);
    const int32_t list_ctas = params.sequences.batch * params.list_ctas, unit = cta - list_ctas;
    if (unit < 0)
        list_tasks(params, cta / kListCtas, cta % kListCtas);
    else
        prepare_rows<Instance::kConfig.dtype, Instance::kConfig.tile.head_dim>(params, unit / params.heads_q,
                                                                               unit % params.heads_q);
}

template <class Instance>
const void* prepare_kernel() {
    return reinterpret_cast<const void*>(&prepare_backward<Instance>);
}

}  // namespace foveal::sm90
