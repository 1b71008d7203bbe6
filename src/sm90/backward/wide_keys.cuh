// dK and dV of heads too wide for the kernel that computes all at once: a CTA has 64 keys of one KV head, and walks the
// query tiles that see them, of each query head of the group.
//
//   [producer, warp 0]  K; for every step: Q and -lse.
//   [producer, warp 1]  V; for every step: dO and -delta.
//   [consumer 0]        S = K Q^T, from -lse / scale on; P, which goes to shared memory too; dV += P dO. (Dropout: what
//                       is dropped goes there with its sign set, and is 0 towards dV.)
//   [consumer 1]        dP = V dO^T, from -delta on (under dropout from 0); waits for P; dS = P * dP; dK += dS Q.
// Both issue the scores of the next step before the sums of this one, under which then lie the exponentials, and to d
// 192 also P's way from one to the other and the product with it. To d 192 K and V are read once, into registers: else
// shared memory's banks would bind.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sm90/backward/accumulators.cuh"
#include "sm90/backward/await.cuh"
#include "sm90/backward/epilogue.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/wide.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/scores/dropout.cuh"

namespace foveal::sm90 {

// 0 is that of __syncthreads().
enum WideBarrier : int32_t { kProbabilitiesStored = 1, kProbabilitiesRead = 2 };

template <BackwardConfig kConfig>
struct WideKeysShared {
    static constexpr int32_t kStages = kConfig.tile.query_buffers;
    using W = Wide<kConfig>;
    alignas(1024) uint16_t k[W::kElements];
    uint16_t v[W::kElementsV];
    uint16_t q[kStages][W::kElements], dout[kStages][W::kElementsV];
    float4 p[Fragment::size(kWideKeys) / 4][kWarpgroupThreads];  // as the registers have it
    float neg_lse[kStages][kBackwardQueries], neg_delta[kStages][kBackwardQueries];
    BackwardTask task;
    Ring<kStages> q_ring, dout_ring;
    uint64_t k_full, v_full, landed[2];
};

// Q and K, or dO and V: by the warp that has them.
template <BackwardConfig kConfig, bool kOfQ>
__device__ __forceinline__ void produce_wide_rows(WideKeysShared<kConfig>& shared, const BackwardMaps& maps,
                                                  const BackwardParams& params) {
    using W = Wide<kConfig>;
    using Load = typename W::template Load<kOfQ ? W::kHeadDim : W::kHeadDimV>;
    constexpr int32_t kWarp = kOfQ ? 0 : 1;
    const BackwardTask& task = shared.task;
    RingPosition<1> landing;
    RingPosition<WideKeysShared<kConfig>::kStages> at;
    Load{kOfQ ? shared.k : shared.v,
         kOfQ ? maps.k : maps.v,
         task.k.first,
         task.key,
         task.head_k,
         task.batch,
         nullptr,
         nullptr}
        .issue_used(kOfQ ? shared.k_full : shared.v_full, shared.landed[kWarp], landing, task.seen,
                    params.mapped_rows_k);
    auto& ring = kOfQ ? shared.q_ring : shared.dout_ring;
    for_each_step(task, params.heads_per_kv, [&](BackwardStep step, bool) {
        ring.wait_free(at);
        const int64_t row = unit_of(params, task, step) * kBackwardQueries;
        Load{kOfQ ? shared.q[at.slot] : shared.dout[at.slot],
             kOfQ ? maps.q : maps.dout,
             task.q.first,
             step.tile * kBackwardQueries,
             task.head_k * params.heads_per_kv + step.head,
             task.batch,
             kOfQ ? shared.neg_lse[at.slot] : shared.neg_delta[at.slot],
             (kOfQ ? params.workspace.neg_lse : params.workspace.neg_delta) + row}
            .issue_used(ring.full[at.slot][0], shared.landed[kWarp], landing, task.seeing, params.mapped_rows_q);
        at.advance();
    });
}

template <BackwardConfig kConfig>
__device__ __forceinline__ void produce_wide(WideKeysShared<kConfig>& shared, const BackwardMaps& maps,
                                             const BackwardParams& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (warp == 0) produce_wide_rows<kConfig, true>(shared, maps, params);
    if (warp == 1) produce_wide_rows<kConfig, false>(shared, maps, params);
}

// kIsOfKeys: consumer 1, which has dK; else consumer 0, which has dV.
template <BackwardConfig kConfig, bool kIsOfKeys>
class WideKeysConsumer {
    using W = Wide<kConfig>;
    // Of the tiles that the scores are computed of, and of those that the sums are.
    static constexpr int32_t kBefore = kIsOfKeys ? W::kHeadDimV : W::kHeadDim,
                             kBehind = kIsOfKeys ? W::kHeadDim : W::kHeadDimV;
    static constexpr int32_t kBoth = kBackwardConsumers * kWarpgroupThreads;
    static constexpr bool kDrops = kConfig.drops_weights(), kDraws = kDrops && !kIsOfKeys;
    struct Nothing {};

   public:
    __device__ __forceinline__ WideKeysConsumer(WideKeysShared<kConfig>& shared, const BackwardParams& params,
                                                const Dropout& dropout)
        : shared_(shared),
          params_(params),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / kWarpThreads)),
          rows_(W::low_word(kIsOfKeys ? shared.v : shared.k)),
          q_(W::low_word(shared.q[0])),
          dout_(W::low_word(shared.dout[0])),
          dropout_(dropout) {}

    __device__ __forceinline__ void run() {
        if (shared_.task.query_tiles.size() == 0) {
#pragma unroll
            for (float& x : sums_) x = 0;
        } else {
            walk();
        }
        const BackwardTask& task = shared_.task;
        store_gradient<kConfig.dtype>(
            sums_, kIsOfKeys ? params_.dk : params_.dv,
            {task.batch, task.k.first, task.head_k, task.key + warp_ * kWarpRows, task.k.length},
            kIsOfKeys ? params_.head_dim : params_.head_dim_v, kIsOfKeys ? params_.scale : scale_of_dv());
    }

   private:
    __device__ __forceinline__ float scale_of_dv() const {
        if constexpr (kDrops) return dropout_.call.scale;
        return 1.0F;
    }

    __device__ __forceinline__ void walk() {
        const BackwardTask& task = shared_.task;
        const Range tiles{uniform(task.query_tiles.begin), uniform(task.query_tiles.end)};
        step_ = BackwardStep::first(tiles, true);
        ptx::mbarrier_wait(kIsOfKeys ? shared_.v_full : shared_.k_full, 0);
        if constexpr (W::kKeepsKeys) W::read_operand(own_, kIsOfKeys ? shared_.v : shared_.k, warp_);
        begin_scores();
        issue_scores();
        draw();
        ptx::wgmma_wait_group<0>();
        ptx::pin(x_);
        read_deltas();
        before().release_read(at_.slot);
        transform();
        if constexpr (W::kKeepsKeys) exchange(true);
        for (bool is_first = true, more = true; more; is_first = false) {
            if constexpr (!W::kKeepsKeys) exchange(is_first);
            typename W::Operand factors;
            round_operand<kConfig.dtype>(factors, x_);
            if constexpr (kDraws) drop_operand(factors, drop_.kept);
            behind().wait_full(at_);
            const int32_t slot = at_.slot;
            at_.advance();
            more = step_.advance(tiles, true, params_.heads_per_kv);
            if (more) begin_scores();
            issue_scores();  // of the last step once more, for nothing: no branch may stand before the wait
            W::issue_sums(sums_, factors, (kIsOfKeys ? q_ : dout_) + static_cast<uint32_t>(slot) * W::distance(kBehind),
                          !is_first);
            draw();
            ptx::wgmma_wait_group<1>();
            ptx::pin(x_);
            if (more) {
                read_deltas();
                before().release_read(at_.slot);
                transform();
                if constexpr (W::kKeepsKeys) exchange(false);
            }
            ptx::wgmma_wait_group<0>();
            ptx::pin(sums_);
            behind().release(slot);
        }
    }

    // The ring whose tiles the scores need, and that whose tiles the sums need.
    __device__ __forceinline__ auto& before() { return kIsOfKeys ? shared_.dout_ring : shared_.q_ring; }
    __device__ __forceinline__ auto& behind() { return kIsOfKeys ? shared_.q_ring : shared_.dout_ring; }

    __device__ __forceinline__ void begin_scores() {
        before().wait_full(at_);
        if constexpr (kDrops && kIsOfKeys) {
#pragma unroll
            for (float& x : x_) x = 0;
        } else {
            start_columns(x_, kIsOfKeys ? shared_.neg_delta[at_.slot] : shared_.neg_lse[at_.slot]);
        }
        const BackwardTask& task = shared_.task;
        if (kIsOfKeys || task.unmasked.contains(step_.tile)) return;
        const int32_t lane = ptx::lane_id();
        hide_columns(x_, task.band, task.key + warp_ * kWarpRows + Fragment::first_row(lane),
                     step_.tile * kBackwardQueries + Fragment::first_column(lane));
    }
    __device__ __forceinline__ void issue_scores() {
        const uint32_t b = (kIsOfKeys ? dout_ : q_) + static_cast<uint32_t>(at_.slot) * W::distance(kBefore);
        if constexpr (W::kKeepsKeys)
            W::issue_scores(x_, own_, b);
        else  // uniform(): as in wide_queries.cuh; where it draws, there are no registers for them
            W::template issue_scores<kBefore>(x_, kDraws ? uniform(rows_) : rows_, b);
    }

    // Under the sums of the step before.
    __device__ __forceinline__ void transform() {
        if constexpr (!kIsOfKeys) {
#pragma unroll
            for (float& x : x_) x = ptx::ex2(x * params_.scale_log2);
            ptx::pin(x_);
        }
    }

    // P goes from consumer 0 to consumer 1, which multiplies with it.
    __device__ __forceinline__ void exchange(bool is_first) {
        const auto thread = threadIdx.x % kWarpgroupThreads;
        if constexpr (kIsOfKeys) {
            ptx::barrier_sync(kProbabilitiesStored, kBoth);
#pragma unroll
            for (int32_t i = 0; i < Fragment::size(kWideKeys); i += 4) {
                const float4 p = shared_.p[i / 4][thread];
                multiply(i, p.x), multiply(i + 1, p.y), multiply(i + 2, p.z), multiply(i + 3, p.w);
            }
            ptx::barrier_arrive(kProbabilitiesRead, kBoth);
        } else {
            if (!is_first) ptx::barrier_sync(kProbabilitiesRead, kBoth);
#pragma unroll
            for (int32_t i = 0; i < Fragment::size(kWideKeys); i += 4)
                shared_.p[i / 4][thread] = float4{told(i), told(i + 1), told(i + 2), told(i + 3)};
            ptx::barrier_arrive(kProbabilitiesStored, kBoth);
        }
        if constexpr (W::kKeepsKeys) ptx::pin(x_);
    }

    // ---- dropout: consumer 0 draws, and tells consumer 1 by the sign of P -------------------------------------------

    // Of the step whose scores have been issued.
    __device__ __forceinline__ void draw() {
        if constexpr (kDraws) {
            const BackwardTask& task = shared_.task;
            const int32_t head = task.head_k * params_.heads_per_kv + step_.head;
            drop_.kept = kept_scores<kBackwardQueries, true>(
                dropout_.key, dropout_.call.threshold,
                static_cast<uint32_t>(task.sequence) * static_cast<uint32_t>(params_.heads_q) +
                    static_cast<uint32_t>(head),
                task.key + warp_ * kWarpRows, step_.tile * kBackwardQueries);
        }
    }
    // Of register i, which is not negative.
    __device__ __forceinline__ float told(int32_t i) const {
        if constexpr (kDraws) return drop_.kept.keeps(i) ? x_[i] : -x_[i];
        return x_[i];
    }

    // -delta of the step whose scores are there, while its slot is still this one's.
    __device__ __forceinline__ void read_deltas() {
        if constexpr (kDrops && kIsOfKeys) start_columns(drop_.neg_delta, shared_.neg_delta[at_.slot]);
    }
    // From dP to dS.
    __device__ __forceinline__ void multiply(int32_t i, float p) {
        if constexpr (kDrops) {
            const bool kept = __float_as_int(p) >= 0;
            x_[i] = fmaf(x_[i], kept ? dropout_.call.scale : 0.0F, drop_.neg_delta[i]) * fabsf(p);
        } else {
            x_[i] *= p;
        }
    }

    WideKeysShared<kConfig>& shared_;
    const BackwardParams& params_;
    const int32_t warp_;
    const uint32_t rows_, q_, dout_;  // low words of descriptors
    typename W::template Sums<kBehind> sums_;
    typename W::Scores x_;
    // This warp's rows of K or V.
    [[no_unique_address]] std::conditional_t<W::kKeepsKeys, uint32_t[kBefore / Format<kConfig.dtype>::kKstepColumns][4],
                                             Nothing>
        own_;
    RingPosition<WideKeysShared<kConfig>::kStages> at_;
    BackwardStep step_;
    [[no_unique_address]] const ThreadDropout<kDrops> dropout_;
    // Of the step: what consumer 0 draws, and what consumer 1 has read of the columns.
    struct Drop {
        KeptScores<kBackwardQueries, true> kept;
        typename W::Scores neg_delta;
    };
    [[no_unique_address]] std::conditional_t<kDrops, Drop, Nothing> drop_;
};

template <BackwardConfig kConfig>
__device__ __forceinline__ void run_wide_keys(WideKeysShared<kConfig>& shared, const BackwardMaps& maps,
                                              const BackwardParams& params, const Dropout& dropout) {
    constexpr uint32_t kConsumerWarps = kBackwardConsumers * kWarpgroupWarps;
    constexpr Slots kSlots{kWideKeys};
    const auto cta = static_cast<int32_t>(blockIdx.x);
    const int32_t slot = cta / params.heads_k;
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < WideKeysShared<kConfig>::kStages; ++i) {
            shared.q_ring.initialise(i, 1, kConsumerWarps);
            shared.dout_ring.initialise(i, 1, kConsumerWarps);
        }
        ptx::mbarrier_init(shared.k_full, 1);
        ptx::mbarrier_init(shared.v_full, 1);
        ptx::mbarrier_init(shared.landed[0], 1);
        ptx::mbarrier_init(shared.landed[1], 1);
        ptx::fence_mbarrier_init();
    }
    await_kernel_before();
    if (threadIdx.x == 0) {
        const BackwardSequences& sequences = params.sequences;
        const int32_t number = kSlots.sequence_at(sequences.k, sequences.batch, slot);
        shared.task = task_of(sequences, sequences.of(number), number, cta % params.heads_k,
                              (slot - kSlots.of(sequences.k, number)) * kWideKeys, kWideKeys, true);
    }
    __syncthreads();
    if (shared.task.key >= shared.task.k.length) return;
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        if (shared.task.query_tiles.size() > 0) produce_wide<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        if (warpgroup == 1)
            WideKeysConsumer<kConfig, false>(shared, params, dropout).run();
        else
            WideKeysConsumer<kConfig, true>(shared, params, dropout).run();
    }
}

template <class Instance>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_of_wide_keys(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
                          const __grid_constant__ BackwardParams params, const __grid_constant__ Dropout dropout) {
    extern __shared__ unsigned char shared_memory[];
    run_wide_keys<Instance::kConfig>(*reinterpret_cast<WideKeysShared<Instance::kConfig>*>(shared_memory),
                                     {q_map, k_map, v_map, dout_map}, params, dropout);
}

template <class Instance>
const void* wide_keys_kernel() {
    static_assert(sizeof(WideKeysShared<Instance::kConfig>) <=
                  static_cast<size_t>(wide_shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&backward_of_wide_keys<Instance>);
}

}  // namespace foveal::sm90
