// dQ of heads too wide for the kernel that computes all at once: a CTA has 128 queries of one head, each of its
// consumer warpgroups 64 of them, and walks the keys that some of them see, 64 a step.
//
//   [producer, warp 0]  Q, dO; for every step: K.
//   [producer, warp 1]  for every step: V.
//   [consumer]          S = Q K^T, from -lse / scale on, and dP = dO V^T, from -delta on; dS = P * dP; dQ += dS K.
// The scores of the next step are issued before the sums of this one, under which then lie the exponentials.
#pragma once

#include <cstdint>

#include "sm90/backward/accumulators.cuh"
#include "sm90/backward/await.cuh"
#include "sm90/backward/epilogue.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/wide.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/scores/dropout.cuh"

namespace foveal::sm90 {

struct WideQueriesTask {
    int32_t batch, head, head_k;
    BackwardSequence sequence;
    int32_t query;     // the CTA's first, of the sequence
    Range key_blocks;  // of 64 keys
};

template <BackwardConfig kConfig>
struct WideQueriesShared {
    static constexpr int32_t kKeyBuffers = kConfig.tile.key_buffers, kValueBuffers = kConfig.tile.value_buffers();
    using W = Wide<kConfig>;
    alignas(1024) uint16_t q[kBackwardConsumers][W::kElements];
    uint16_t dout[kBackwardConsumers][W::kElementsV];
    uint16_t k[kKeyBuffers][W::kElements];
    uint16_t v[kValueBuffers][W::kElementsV];
    WideQueriesTask task;
    Ring<kKeyBuffers> k_ring;
    Ring<kValueBuffers> v_ring;
    uint64_t q_full[kBackwardConsumers], dout_full[kBackwardConsumers], landed[2];
    // Only under dropout: the task's, of the batch; of the call.
    int32_t sequence;
    PhiloxKey dropout_key;
};

template <BackwardConfig kConfig>
__device__ __forceinline__ void produce_wide(WideQueriesShared<kConfig>& shared, const BackwardMaps& maps,
                                             const BackwardParams& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (warp > 1) return;
    const WideQueriesTask& task = shared.task;
    const SequenceRows q = task.sequence.q, k = task.sequence.k;
    using W = Wide<kConfig>;
    using Load = typename W::template Load<W::kHeadDim>;
    using LoadV = typename W::template Load<W::kHeadDimV>;
    RingPosition<1> landing;
    RingPosition<WideQueriesShared<kConfig>::kKeyBuffers> keys;
    RingPosition<WideQueriesShared<kConfig>::kValueBuffers> values;
    for (int32_t w = 0; w < (warp == 0 ? kBackwardConsumers : 0); ++w) {
        const int32_t row = task.query + w * kWarpgroupRows;
        Load{shared.q[w], maps.q, q.first, row, task.head, task.batch, nullptr, nullptr}.issue_used(
            shared.q_full[w], shared.landed[0], landing, task.sequence.seeing, params.mapped_rows_q);
        LoadV{shared.dout[w], maps.dout, q.first, row, task.head, task.batch, nullptr, nullptr}.issue_used(
            shared.dout_full[w], shared.landed[0], landing, task.sequence.seeing, params.mapped_rows_q);
    }
    for (int32_t block = task.key_blocks.begin; block < task.key_blocks.end; ++block) {
        const int32_t row = block * kWideKeys;
        if (warp == 0) {
            shared.k_ring.wait_free(keys);
            Load{shared.k[keys.slot], maps.k, k.first, row, task.head_k, task.batch, nullptr, nullptr}.issue_used(
                shared.k_ring.full[keys.slot][0], shared.landed[0], landing, task.sequence.seen, params.mapped_rows_k);
            keys.advance();
        } else {
            shared.v_ring.wait_free(values);
            LoadV{shared.v[values.slot], maps.v, k.first, row, task.head_k, task.batch, nullptr, nullptr}.issue_used(
                shared.v_ring.full[values.slot][0], shared.landed[1], landing, task.sequence.seen,
                params.mapped_rows_k);
            values.advance();
        }
    }
}

template <BackwardConfig kConfig>
class WideQueriesConsumer {
    using W = Wide<kConfig>;
    static constexpr int32_t kScores = Fragment::size(kWideKeys);

   public:
    __device__ __forceinline__ WideQueriesConsumer(WideQueriesShared<kConfig>& shared, const BackwardParams& params,
                                                   const Dropout& dropout, int32_t warpgroup)
        : shared_(shared),
          params_(params),
          warpgroup_(warpgroup),
          row_(shared.task.query + warpgroup * kWarpgroupRows +
               uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / kWarpThreads) * kWarpRows),
          q_(W::low_word(shared.q[warpgroup])),
          dout_(W::low_word(shared.dout[warpgroup])),
          k_(W::low_word(shared.k[0])),
          v_(W::low_word(shared.v[0])),
          dropout_(dropout) {}

    __device__ __forceinline__ void run() {
        const WideQueriesTask& task = shared_.task;
        if (task.key_blocks.size() == 0) {
#pragma unroll
            for (float& x : sums_) x = 0;
        } else {
            walk();
        }
        store_gradient<kConfig.dtype>(sums_, params_.dq,
                                      {task.batch, task.sequence.q.first, task.head, row_, task.sequence.q.length},
                                      params_.head_dim, params_.scale);
    }

   private:
    __device__ __forceinline__ void walk() {
        const int32_t end = uniform(shared_.task.key_blocks.end);
        block_ = uniform(shared_.task.key_blocks.begin);
        read_rows();
        ptx::mbarrier_wait(shared_.q_full[warpgroup_], 0);
        ptx::mbarrier_wait(shared_.dout_full[warpgroup_], 0);
        draw();
        begin_scores();
        issue_scores();
        ptx::wgmma_wait_group<0>();
        pin_scores();
        shared_.v_ring.release(values_.slot);
        multiply();
        for (bool is_first = true, more = true; more; is_first = false) {
            typename W::Operand ds;
            round_operand<kConfig.dtype>(ds, dp_);
            const int32_t slot = keys_.slot;
            keys_.advance();
            values_.advance();
            more = ++block_ < end;
            draw();
            if (more)
                begin_scores();
            else if constexpr (kConfig.drops_weights())
                clear_scores();
            issue_scores();  // of the last step once more, for nothing: no branch may stand before the wait
            W::issue_sums(sums_, ds, k() + static_cast<uint32_t>(slot) * W::distance(W::kHeadDim), !is_first);
            ptx::wgmma_wait_group<1>();
            pin_scores();
            if (more) {
                shared_.v_ring.release(values_.slot);
                if constexpr (!kConfig.drops_weights()) multiply();
            }
            ptx::wgmma_wait_group<0>();
            ptx::pin(sums_);
            shared_.k_ring.release(slot);
            if constexpr (kConfig.drops_weights())
                if (more) multiply();  // it needs the registers of dS
        }
    }

    // -lse and -delta of the thread's two rows. Those past the sequence's end see nothing.
    __device__ __forceinline__ void read_rows() {
        const WideQueriesTask& task = shared_.task;
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            const int32_t row = row_ + Fragment::first_row(ptx::lane_id()) + r * Fragment::kRowDistance;
            const bool exists = row < task.sequence.q.length;
            const int64_t at = params_.unit(task.sequence.slot + row / kBackwardQueries, task.head) * kBackwardQueries +
                               row % kBackwardQueries;
            neg_lse_[r] = exists ? params_.workspace.neg_lse[at] : -INFINITY;
            neg_delta_[r] = exists ? params_.workspace.neg_delta[at] : 0.0F;
        }
    }

    __device__ __forceinline__ void begin_scores() {
        shared_.k_ring.wait_full(keys_);
        shared_.v_ring.wait_full(values_);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) {
            p_[i] = neg_lse_[Fragment::row(i)];
            dp_[i] = kConfig.drops_weights() ? 0.0F : neg_delta_[Fragment::row(i)];
        }
        const Band& band = shared_.task.sequence.band;
        const int32_t first_row = uniform(row_), key = block_ * kWideKeys;
        const Range first = visible_keys(band, first_row), last = visible_keys(band, first_row + kWarpRows - 1);
        if (last.begin <= key && key + kWideKeys <= first.end) return;  // each row sees each key
        hide(band, key);
    }

    // What they were is then of no use, and takes no registers while a mask is drawn.
    __device__ __forceinline__ void clear_scores() {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) p_[i] = dp_[i] = 0;
    }

    // The band has no chunks.
    __device__ __forceinline__ void hide(const Band& band, int32_t key) {
        const int32_t lane = ptx::lane_id();
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            const Range seen = visible_keys(band, row_ + Fragment::first_row(lane) + r * Fragment::kRowDistance);
            const int32_t first_key = key + Fragment::first_column(lane);
            const int32_t begin = seen.begin - first_key, end = seen.end - first_key;
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (Fragment::row(i) == r && (Fragment::column_offset(i) < begin || Fragment::column_offset(i) >= end))
                    p_[i] = -INFINITY;
        }
    }

    __device__ __forceinline__ void issue_scores() {
        // uniform(): or the addresses of all ksteps would be computed before the loop, and occupy registers.
        W::template issue_scores<W::kHeadDim>(p_, uniform(q()),
                                              k() + static_cast<uint32_t>(keys_.slot) * W::distance(W::kHeadDim));
        W::template issue_scores<W::kHeadDimV>(dp_, uniform(dout()), uniform(v_of_block()));
    }
    // Low words of descriptors, computed anew each time where dropout needs the registers.
    __device__ __forceinline__ uint32_t q() const {
        return kConfig.drops_weights() ? W::low_word(shared_.q[warpgroup_]) : q_;
    }
    __device__ __forceinline__ uint32_t dout() const {
        return kConfig.drops_weights() ? W::low_word(shared_.dout[warpgroup_]) : dout_;
    }
    __device__ __forceinline__ uint32_t k() const { return kConfig.drops_weights() ? W::low_word(shared_.k[0]) : k_; }
    __device__ __forceinline__ uint32_t v() const { return kConfig.drops_weights() ? W::low_word(shared_.v[0]) : v_; }
    __device__ __forceinline__ uint32_t v_of_block() const {
        if constexpr (WideQueriesShared<kConfig>::kValueBuffers == 1) return v();
        return v() + static_cast<uint32_t>(values_.slot) * W::distance(W::kHeadDimV);
    }
    __device__ __forceinline__ void pin_scores() {
        ptx::pin(p_);
        ptx::pin(dp_);
    }

    // dS, under the sums of the step before.
    __device__ __forceinline__ void multiply() {
        if constexpr (kConfig.drops_weights()) {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                dp_[i] = fmaf(dp_[i], kept_.keeps(i) ? dropout_.scale : 0.0F, neg_delta_[Fragment::row(i)]);
        }
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) dp_[i] *= ptx::ex2(p_[i] * params_.scale_log2);
        ptx::pin(dp_);
    }

    // Of the step whose scores come next: beside them there are no registers for it.
    __device__ __forceinline__ void draw() {
        if constexpr (kConfig.drops_weights())
            kept_ = kept_scores<kWideKeys, false>(
                shared_.dropout_key, dropout_.threshold,
                static_cast<uint32_t>(shared_.sequence) * static_cast<uint32_t>(params_.heads_q) +
                    static_cast<uint32_t>(shared_.task.head),
                block_ * kWideKeys, row_);
    }

    WideQueriesShared<kConfig>& shared_;
    const BackwardParams& params_;
    const int32_t warpgroup_;
    const int32_t row_;                // the warp's first, of the sequence
    const uint32_t q_, dout_, k_, v_;  // low words of descriptors
    typename W::template Sums<W::kHeadDim> sums_;
    typename W::Scores p_, dp_;
    float neg_lse_[Fragment::kRows], neg_delta_[Fragment::kRows];
    RingPosition<WideQueriesShared<kConfig>::kKeyBuffers> keys_;
    RingPosition<WideQueriesShared<kConfig>::kValueBuffers> values_;
    int32_t block_ = 0;
    // Only under dropout.
    const Dropout& dropout_;
    KeptScores<kWideKeys, false> kept_;
};

// The number of the task's sequence.
template <BackwardConfig kConfig>
__device__ __forceinline__ int32_t set_wide_task(WideQueriesTask& task, const BackwardParams& params) {
    constexpr Slots kSlots{kWideQueries};
    const BackwardSequences& sequences = params.sequences;
    const auto cta = static_cast<int32_t>(blockIdx.x);
    const int32_t slot =
        static_cast<int32_t>(gridDim.x) / params.heads_q - 1 - cta / params.heads_q;  // long ones first
    const int32_t number = kSlots.sequence_at(sequences.q, sequences.batch, slot);
    task.batch = sequences.is_varlen() ? 0 : number;
    task.head = cta % params.heads_q;
    task.head_k = task.head / params.heads_per_kv;
    task.sequence = sequences.of(number);
    task.query = (slot - kSlots.of(sequences.q, number)) * kWideQueries;
    if (task.query < task.sequence.q.length)
        task.key_blocks = kv_range(task.sequence.band,
                                   {task.query, min_i32(task.query + kWideQueries, task.sequence.q.length)}, kWideKeys)
                              .visit;
    return number;
}

template <BackwardConfig kConfig>
__device__ __forceinline__ void run_wide_queries(WideQueriesShared<kConfig>& shared, const BackwardMaps& maps,
                                                 const BackwardParams& params, const Dropout& dropout) {
    constexpr uint32_t kConsumerWarps = kBackwardConsumers * kWarpgroupWarps;
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < WideQueriesShared<kConfig>::kKeyBuffers; ++i)
            shared.k_ring.initialise(i, 1, kConsumerWarps);
        for (int32_t i = 0; i < WideQueriesShared<kConfig>::kValueBuffers; ++i)
            shared.v_ring.initialise(i, 1, kConsumerWarps);
        for (int32_t w = 0; w < kBackwardConsumers; ++w) {
            ptx::mbarrier_init(shared.q_full[w], 1);
            ptx::mbarrier_init(shared.dout_full[w], 1);
            ptx::mbarrier_init(shared.landed[w], 1);
        }
        ptx::fence_mbarrier_init();
    }
    await_kernel_before();
    if (threadIdx.x == 0) {
        const int32_t sequence = set_wide_task<kConfig>(shared.task, params);
        if constexpr (kConfig.drops_weights()) {
            shared.sequence = sequence;
            shared.dropout_key = dropout_key(dropout.state);
        }
    }
    __syncthreads();
    if (shared.task.query >= shared.task.sequence.q.length) return;
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        if (shared.task.key_blocks.size() > 0) produce_wide<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        WideQueriesConsumer<kConfig>(shared, params, dropout, warpgroup - 1).run();
    }
}

template <class Instance>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_of_wide_queries(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                             const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
                             const __grid_constant__ BackwardParams params, const __grid_constant__ Dropout dropout) {
    extern __shared__ unsigned char shared_memory[];
    run_wide_queries<Instance::kConfig>(*reinterpret_cast<WideQueriesShared<Instance::kConfig>*>(shared_memory),
                                        {q_map, k_map, v_map, dout_map}, params, dropout);
}

template <class Instance>
const void* wide_queries_kernel() {
    static_assert(sizeof(WideQueriesShared<Instance::kConfig>) <=
                  static_cast<size_t>(wide_shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&backward_of_wide_queries<Instance>);
}

}  // namespace foveal::sm90
