// The gradients of a bias and of ALiBi slopes: sums of dx = p (dout . v - D) over scores. A kernel of its own, behind
// those of dq, dk and dv, that multiplies S and dP once more: whoever asks for neither does not pay for it. Which CTA
// sums what: score_sums.hpp.
//
//   [producer, one warp]        for every tile of 64 keys by 64 queries: panels of 64 columns of V and dO, with -delta,
//                               then of K and Q, with -lse.
//   [consumer, one warpgroup]   dP = V dO^T; S = K Q^T; P from S by the options; dx = P (dP - delta) is added to the
//                               sums, one for each element of the tile.
//   [consumer]                  at the end, the elements that share a result are added up, and written.
// Scores are transposed as in the main kernel: rows are keys, columns are queries. Any head dimension is so many
// panels.
#pragma once

#include <cstdint>

#include "sm90/backward/await.cuh"
#include "sm90/backward/cta_sum.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/score_sums.hpp"
#include "sm90/backward/score_sums_producer.cuh"
#include "sm90/backward/scores.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/scores/dropout.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

// ---- consumer -------------------------------------------------------------------------------------------------------

template <DType kType>
__device__ __forceinline__ void store_bias_gradient(const BiasGradient& to, int64_t at, float x) {
    if (to.is_f32)
        static_cast<float*>(to.data)[at] = x;
    else
        static_cast<typename Format<kType>::Element*>(to.data)[at] = Format<kType>::round(x);
}

template <DType kType, bool kDrops>
class ScoreSumsConsumer {
    static constexpr int32_t kScores = Fragment::size(kBackwardQueries);
    using Scores = float[kScores];

   public:
    __device__ __forceinline__ ScoreSumsConsumer(ScoreSumsShared& shared, const ScoreSumsParams& params)
        : shared_(shared),
          params_(params),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads)),
          key_(warp_ * kWarpRows + Fragment::first_row(ptx::lane_id())),
          query_(Fragment::first_column(ptx::lane_id())) {
        if constexpr (kDrops) dropout_key_ = read_dropout_key(params.dropout);
    }

    __device__ __forceinline__ void run(const ScoreSumsTask& task) {
#pragma unroll
        for (float& x : sums_) x = 0;
        for (RingPosition<ScoreSumsShared::kSteps> at;; at.advance()) {
            shared_.step_ring.wait_full(at);
            if (shared_.steps[at.slot].is_last != 0) break;
            add(shared_.steps[at.slot]);
            ptx::mbarrier_arrive(shared_.step_ring.free[at.slot][0]);  // each for itself: racecheck follows no warp
        }
        finish(task);
    }

   private:
    // dx of a tile.
    __device__ __forceinline__ void add(const ScoreStep& step) {
        Scores p, dp;
        multiply(dp, params_.backward.head_dim_v);
        multiply(p, params_.backward.head_dim);
        const BackwardScores<kType, kBackwardQueries, true, true> scores(
            params_.backward, step.task, step.head, step.task.key + key_, step.query_tile * kBackwardQueries + query_);
        scores.template probabilities<false>(p, step.neg_lse + query_);
        if constexpr (kDrops) drop(dp, step);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) {
            const float neg_delta = step.neg_delta[query_ + Fragment::column_offset(i)];
            const float dx = p[i] == 0 ? 0.0F : p[i] * (dp[i] + neg_delta);  // what is not seen may be anything
            sums_[i] += params_.of_slopes ? -scores.distance(i) * dx : dx;
        }
    }

    __device__ __forceinline__ void drop(Scores& dp, const ScoreStep& step) const {
        const BackwardParams& backward = params_.backward;
        const auto kept = kept_scores<kBackwardQueries, true>(
            dropout_key_, params_.dropout.threshold,
            static_cast<uint32_t>(step.task.sequence) * static_cast<uint32_t>(backward.heads_q) +
                static_cast<uint32_t>(step.head),
            step.task.key + warp_ * kWarpRows, step.query_tile * kBackwardQueries);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) dp[i] *= kept.keeps(i) ? params_.dropout.scale : 0.0F;
    }

    // x = keys times queries, so many columns of them. The tensor cores cut off what they add, which would be seen
    // where dbias is not rounded to 16 bits: so they add within a panel alone, and panels are added as fp32 is.
    __device__ __forceinline__ void multiply(Scores& x, int32_t columns) {
#pragma unroll
        for (float& one : x) one = 0;
        constexpr uint32_t kKstep = Format<kType>::kKstepBytes / kDescriptorBytes;
#pragma unroll 1
        for (int32_t column = 0; column < columns; column += kPanelColumns) {
            shared_.panel_ring.wait_full(panels_);
            const uint32_t keys = descriptor_low(shared_.keys[panels_.slot], 0),
                           queries = descriptor_low(shared_.queries[panels_.slot], 0);
            Scores of_panel;
#pragma unroll
            for (float& one : of_panel) one = 0;
            ptx::pin(of_panel);
            ptx::wgmma_fence();
#pragma unroll
            for (uint32_t step = 0; step < kPanelRowBytes / Format<kType>::kKstepBytes; ++step)
                ptx::wgmma_ss<kType>(of_panel, descriptor(keys + step * kKstep), descriptor(queries + step * kKstep),
                                     true);
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
            ptx::pin(of_panel);
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) x[i] += of_panel[i];
            shared_.panel_ring.release(panels_.slot);
            panels_.advance();
        }
    }

    __device__ __forceinline__ void finish(const ScoreSumsTask& task) {
        const bool own_query = !params_.of_slopes && params_.sums.queries.own,
                   own_key = !params_.of_slopes && params_.sums.keys.own;
        if (own_key && own_query) {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                put(task, query_ + Fragment::column_offset(i), key_ + Fragment::row_offset(i), sums_[i]);
        } else if (own_key) {
            finish_keys(task);
        } else {
            finish_queries(task, own_query);
        }
    }

    // An element for each key: the sums of its queries, which four lanes have.
    __device__ __forceinline__ void finish_keys(const ScoreSumsTask& task) {
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            float sum = 0;
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (Fragment::row(i) == r) sum += sums_[i];
#pragma unroll
            for (int32_t lanes = 1; lanes < Fragment::kRowLanes; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
            if (query_ == 0) put(task, 0, key_ + r * Fragment::kRowDistance, sum);
        }
    }

    // An element for each query, or one for all: the sums of their keys, which all warps have.
    __device__ __forceinline__ void finish_queries(const ScoreSumsTask& task, bool own_query) {
        float total = 0;
#pragma unroll
        for (int32_t c = 0; c < kBackwardQueries; c += Fragment::kColumns) {
#pragma unroll
            for (int32_t e = 0; e < 2; ++e) {
                float sum = sums_[Fragment::index(0, c + e)] + sums_[Fragment::index(1, c + e)];
#pragma unroll
                for (int32_t lanes = Fragment::kRowLanes; lanes < kWarpThreads; lanes *= 2)
                    sum += __shfl_xor_sync(~0u, sum, lanes);
                if (own_query && ptx::lane_id() < Fragment::kRowLanes) shared_.warp_sums[warp_][query_ + c + e] = sum;
                total += sum;
            }
        }
#pragma unroll
        for (int32_t lanes = 1; lanes < Fragment::kRowLanes; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
        if (!own_query && ptx::lane_id() == 0) shared_.warp_sums[warp_][0] = total;
        ptx::barrier_sync(kWarpSumsStored, kWarpgroupThreads);
        const auto query = static_cast<int32_t>(threadIdx.x);
        if (query >= (own_query ? kBackwardQueries : 1)) return;
        float sum = 0;
#pragma unroll
        for (const auto& of_warp : shared_.warp_sums) sum += of_warp[query];
        put(task, query, 0, sum);
    }

    // The element that is so many queries and keys into the result.
    __device__ __forceinline__ void put(const ScoreSumsTask& task, int32_t query, int32_t key, float sum) const {
        if (params_.of_slopes) {
            params_.slope_parts[params_.backward.unit(task.part, task.place.head)] = sum;
            return;
        }
        query += task.place.query_tile * kBackwardQueries;
        key += task.place.key_tile * kSumKeys;
        const int32_t elements_q = params_.elements_q(), elements_k = params_.elements_k();
        if (query >= elements_q || key >= elements_k) return;
        const BiasGradient& to = params_.dbias;
        if (params_.bias_parts == nullptr) {
            store_bias_gradient<kType>(to,
                                       task.place.sequence * to.batch_stride + task.place.head * to.head_stride +
                                           query * to.row_stride + key * to.key_stride,
                                       sum);
            return;
        }
        const int64_t matrix = int64_t{task.place.sequence} * params_.sums.heads.results() + task.place.head;
        params_.bias_parts[task.part * params_.elements() + (matrix * elements_q + query) * elements_k + key] = sum;
    }

    ScoreSumsShared& shared_;
    const ScoreSumsParams& params_;
    const int32_t warp_, key_, query_;  // the thread's first key and query, of the tile
    PhiloxKey dropout_key_;             // only where weights are dropped
    Scores sums_;
    RingPosition<ScoreSumsShared::kStages> panels_;
};

// ---- kernels --------------------------------------------------------------------------------------------------------

template <DType kType, bool kDrops>
__global__ void __launch_bounds__(kSumThreads, 2)
    sum_scores(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
               const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
               const __grid_constant__ ScoreSumsParams params) {
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<ScoreSumsShared*>(shared_memory);
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < ScoreSumsShared::kSteps; ++i) shared.step_ring.initialise(i, 1, kWarpgroupThreads);
        for (int32_t i = 0; i < ScoreSumsShared::kStages; ++i) shared.panel_ring.initialise(i, 2, kWarpgroupWarps);
        ptx::mbarrier_init(shared.landed, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    await_kernel_before();
    const ScoreSumsTask task = ScoreSumsTask::of(params);
    if (threadIdx.x >= kWarpgroupThreads)
        ScoreSumsProducer(shared, {q_map, k_map, v_map, dout_map}, params).run(task);
    else
        ScoreSumsConsumer<kType, kDrops>(shared, params).run(task);
}

template <DType kType, bool kDrops>
const void* score_sums_kernel() {
    return reinterpret_cast<const void*>(&sum_scores<kType, kDrops>);
}

// The last: a CTA for each slope adds what the query tiles have, in the order of threads; a thread for each element of
// dbias adds its parts, one after the other.
template <DType kType>
__global__ void __launch_bounds__(kFinishThreads) add_score_sums(const __grid_constant__ ScoreSumsParams params) {
    await_kernel_before();
    const auto cta = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
    const int32_t slopes = params.slope_results();
    if (cta < slopes) {
        const BackwardSequences& sequences = params.backward.sequences;
        const int32_t head = cta % params.backward.heads_q, number = cta / params.backward.heads_q;
        Range slots{0, sequences.slots};
        if (params.dalibi_batch_stride != 0) {
            const BackwardSequence sequence = sequences.of(number);
            slots = {sequence.slot, sequence.slot + query_slots().tiles(sequence.q.length)};
        }
        float sum = 0;
        for (int32_t slot = slots.begin + thread; slot < slots.end; slot += kFinishThreads)
            sum += params.slope_parts[params.backward.unit(slot, head)];
        sum = cta_sum<kFinishThreads>(sum);
        if (thread == 0) params.dalibi[number * params.dalibi_batch_stride + head * params.dalibi_head_stride] = sum;
        return;
    }
    const int64_t element = int64_t{cta - slopes} * kFinishThreads + thread, elements = params.elements();
    if (params.bias_parts == nullptr || element >= elements) return;
    float sum = 0;
    for (int32_t part = 0; part < params.sums.parts; ++part) sum += params.bias_parts[part * elements + element];
    const int64_t row = element / params.elements_k(), matrix = row / params.elements_q();
    const BiasGradient& to = params.dbias;
    store_bias_gradient<kType>(
        to,
        matrix / params.sums.heads.results() * to.batch_stride + matrix % params.sums.heads.results() * to.head_stride +
            row % params.elements_q() * to.row_stride + element % params.elements_k() * to.key_stride,
        sum);
}

template <DType kType>
const void* add_score_sums_kernel() {
    return reinterpret_cast<const void*>(&add_score_sums<kType>);
}

}  // namespace foveal::sm90
