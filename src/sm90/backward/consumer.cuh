// What a consumer warpgroup of the backward kernel does: steps 5 to 12 of its schedule (kernel.cuh).
//
// Scores are transposed: a warpgroup's 64 rows are keys, the columns are queries. So P and dS come out of the tensor
// cores in the registers in which dV += P dO and dK += dS Q take them.
#pragma once

#include "sm90/backward/accumulators.cuh"
#include "sm90/backward/epilogue.cuh"
#include "sm90/backward/params.hpp"
#include "sm90/backward/producer.cuh"
#include "sm90/backward/products.cuh"
#include "sm90/backward/scores.cuh"
#include "sm90/backward/shared.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/dropout.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

template <BackwardConfig kConfig>
class BackwardConsumer {
    static constexpr BackwardTile kTile = kConfig.tile;
    using Products = BackwardProducts<kConfig>;
    using Scores = typename Products::Scores;
    using Operand = typename Products::Operand;
    using Kept = KeptScores<kBackwardQueries, true>;
    static constexpr int32_t kBoth = kBackwardConsumers * kWarpgroupThreads;

   public:
    __device__ __forceinline__ BackwardConsumer(BackwardShared<kConfig>& shared, const BackwardParams& params,
                                                const Dropout& dropout, int32_t warpgroup)
        : shared_(shared),
          params_(params),
          dropout_(dropout),
          warpgroup_(warpgroup),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / kWarpThreads)),
          products_(shared, warpgroup) {}

    __device__ __forceinline__ void run() {
        if (!start()) return;
        for (;;) {
            gradients_of_step();
            next_scores();
            probabilities();
            if (ended_) break;
        }
        last_dq();
    }

   private:
    // ---- the steps --------------------------------------------------------------------------------------------------

    // The scores of the first step, and their exponentials. false: there is none.
    __device__ __forceinline__ bool start() {
        if (is_last(wait_task<kConfig>(shared_, tasks_))) return false;
        read_task();
        wait_keys_and_queries();
        initial_scores();
        products().issue_scores(p_, keys_.slot, queries_.slot);
        draw();
        ptx::wgmma_wait_group<0>();
        ptx::pin(p_);
        exponentiate();
        tell(stored_barrier(warpgroup_, parity_ ^ 1));  // no dS of a step before
        return true;
    }

    // P of this step is there. dQ of the step before leaves under dV; then dP, and dS.
    __device__ __forceinline__ void gradients_of_step() {
        if constexpr (!kConfig.has_options()) round_operand<kConfig.dtype>(rounded_p_, p_);
        if constexpr (kConfig.drops_weights()) drop_operand(rounded_p_, kept_);
        if (!ended_) shared_.dout_ring.wait_full(douts_);
        wait_for(stored_barrier(other(), parity_ ^ 1));
        {
            typename Products::DqColumns dq;
            products().issue_dq(dq, dq_key_slot_);
            products().issue_dv(dv_, rounded_p_, douts_.slot, !is_first_);
            ptx::wgmma_wait_group<1>();
            ptx::pin(dq);
            tell(read_barrier(warpgroup_, parity_ ^ 1));
            stage_dq(dq);
        }
        if (is_first_) {
            if (has_step_before_) shared_.k_ring.release(dq_key_slot_);
            shared_.v_ring.wait_full(values_);
        }
        Scores dp;
        start_dp(dp);
        products().issue_dp(dp, douts_.slot);
        ptx::wgmma_wait_group<0>();
        ptx::pin(dp);
        ptx::pin(dv_);
        multiply(dp);
        round_operand<kConfig.dtype>(ds_, dp);
    }

    // dS of this step goes to shared memory; scores of the next step and dK of this one are issued.
    __device__ __forceinline__ void next_scores() {
        wait_for(read_barrier(other(), parity_ ^ 1));
        store_ds();
        ptx::fence_proxy_async();
        __syncwarp();
        if (ptx::elect_sync()) ptx::mbarrier_arrive(shared_.dq_ring[warpgroup_].full[0][0]);
        tell(stored_barrier(warpgroup_, parity_));
        const bool accumulates = !is_first_;
        shared_.dout_ring.release(douts_.slot);
        dk_query_slot_ = queries_.slot;
        dq_key_slot_ = keys_.slot;
        advance();
        if (!ended_) {
            wait_keys_and_queries();
            initial_scores();
        }
        products().issue_scores(p_, keys_.slot, queries_.slot);
        products().issue_dk(dk_, ds_, dk_query_slot_, accumulates);
        draw();
        parity_ ^= 1;
        has_step_before_ = true;
    }

    // Exponentials run under dK (options do not: they need its operands' registers). Where the task has ended, its dK
    // and dV leave.
    __device__ __forceinline__ void probabilities() {
        ptx::wgmma_wait_group<kConfig.has_options() ? 0 : 1>();
        ptx::pin(p_);
        if constexpr (kConfig.has_options()) ptx::pin(dk_);
        exponentiate();
        ptx::wgmma_wait_group<0>();
        ptx::pin(dk_);
        shared_.q_ring.release_read(dk_query_slot_);
        if (!is_first_) return;
        const BackwardTask& task = shared_.tasks[ended_task_slot_];
        const GradientTile tile{task.batch, task.k.first, task.head_k,
                                task.key + warpgroup_ * kWarpgroupRows + warp_ * kWarpRows, task.k.length};
        store_gradient<kConfig.dtype>(dk_, params_.dk, tile, params_.head_dim, params_.scale);
        store_gradient<kConfig.dtype>(dv_, params_.dv, tile, params_.head_dim_v,
                                      kConfig.drops_weights() ? dropout_.scale : 1.0F);
        release_task<kConfig>(shared_, ended_task_slot_);
    }

    // dQ of the last step.
    __device__ __forceinline__ void last_dq() {
        wait_for(stored_barrier(other(), parity_ ^ 1));
        typename Products::DqColumns dq;
        products().issue_dq(dq, dq_key_slot_);
        ptx::wgmma_wait_group<0>();
        ptx::pin(dq);
        stage_dq(dq);
        ptx::fence_proxy_async();
        __syncwarp();
        if (ptx::elect_sync()) ptx::mbarrier_arrive(shared_.dq_ring[warpgroup_].full[0][0]);
    }

    // Computed anew each time where the options need the registers.
    __device__ __forceinline__ Products products() const {
        if constexpr (kConfig.has_options()) return Products(shared_, uniform(warpgroup_));
        return products_;
    }

    // ---- the walk ---------------------------------------------------------------------------------------------------

    __device__ __forceinline__ void read_task() {
        const BackwardTask& task = shared_.tasks[tasks_.slot];
        query_tiles_ = {uniform(task.query_tiles.begin), uniform(task.query_tiles.end)};
        unmasked_ = {uniform(task.unmasked.begin), uniform(task.unmasked.end)};
        ascends_ = uniform(task.ascends) != 0;
        step_ = BackwardStep::first(query_tiles_, ascends_);
        is_first_ = true;
    }

    // To the next step, of which is_first_ then tells whether it is its task's first: also where none comes any more.
    __device__ __forceinline__ void advance() {
        douts_.advance();
        queries_.advance();
        is_first_ = !step_.advance(query_tiles_, ascends_, params_.heads_per_kv);
        if (!is_first_) return;
        ended_task_slot_ = tasks_.slot;
        shared_.v_ring.release(0);
        values_.advance();
        keys_.advance();
        tasks_.advance();
        ended_ = is_last(wait_task<kConfig>(shared_, tasks_));
        if (!ended_) read_task();
    }

    __device__ __forceinline__ void wait_keys_and_queries() {
        if (is_first_) shared_.k_ring.wait_full(keys_);
        shared_.q_ring.wait_full(queries_);
    }

    __device__ __forceinline__ int32_t other() const { return warpgroup_ ^ 1; }
    __device__ __forceinline__ void tell(int32_t barrier) const { ptx::barrier_arrive(barrier, kBoth); }
    __device__ __forceinline__ void wait_for(int32_t barrier) const { ptx::barrier_sync(barrier, kBoth); }

    // ---- scores -----------------------------------------------------------------------------------------------------

    // Scores start at -lse / scale, so that their exponential is P; -inf where the query does not see the key. With
    // options they start at 0.
    __device__ __forceinline__ void initial_scores() {
        if constexpr (kConfig.has_options()) {
#pragma unroll
            for (int32_t i = 0; i < Products::kScores; ++i) p_[i] = 0;
        } else {
            start_columns(p_, shared_.neg_lse[queries_.slot]);
            const BackwardTask& task = shared_.tasks[tasks_.slot];
            if (!unmasked_.contains(step_.tile)) hide_columns(p_, task.band, first_key(task), first_query());
        }
    }

    // The thread's first, of the step.
    __device__ __forceinline__ int32_t first_key(const BackwardTask& task) const {
        return task.key + warpgroup_ * kWarpgroupRows + warp_ * kWarpRows + Fragment::first_row(ptx::lane_id());
    }
    __device__ __forceinline__ int32_t first_query() const {
        return step_.tile * kBackwardQueries + Fragment::first_column(ptx::lane_id());
    }

    __device__ __forceinline__ void exponentiate() {
        if constexpr (kConfig.has_options()) {
            const BackwardTask& task = shared_.tasks[tasks_.slot];
            const float* neg_lse = shared_.neg_lse[queries_.slot] + Fragment::first_column(ptx::lane_id());
            if (!ended_)
                BackwardScores<kConfig.dtype>(params_, task, task.head_k * params_.heads_per_kv + step_.head,
                                              first_key(task), first_query())
                    .apply(p_, rounded_p_, neg_lse);
        } else {
#pragma unroll
            for (int32_t i = 0; i < Products::kScores; ++i) p_[i] = ptx::ex2(p_[i] * params_.scale_log2);
        }
        ptx::pin(p_);
    }

    // ---- dropout ----------------------------------------------------------------------------------------------------

    // Of the step whose scores have been issued: of none, if there is none any more.
    __device__ __forceinline__ void draw() {
        if constexpr (kConfig.drops_weights()) {
            const BackwardTask& task = shared_.tasks[tasks_.slot];
            const int32_t head = task.head_k * params_.heads_per_kv + step_.head;
            kept_ = kept_scores<kBackwardQueries, true>(
                shared_.dropout_key, dropout_.threshold,
                static_cast<uint32_t>(task.sequence) * static_cast<uint32_t>(params_.heads_q) +
                    static_cast<uint32_t>(head),
                task.key + warpgroup_ * kWarpgroupRows + warp_ * kWarpRows, step_.tile * kBackwardQueries);
        }
    }

    // dP starts at -delta; under dropout, which only part of dP comes through, at 0.
    __device__ __forceinline__ void start_dp(Scores& dp) const {
        if constexpr (kConfig.drops_weights()) {
#pragma unroll
            for (float& x : dp) x = 0;
        } else {
            start_columns(dp, shared_.neg_delta[douts_.slot]);
        }
    }

    // From dP to dS.
    __device__ __forceinline__ void multiply(Scores& dp) const {
        if constexpr (kConfig.drops_weights()) {
            Scores neg_delta;
            start_columns(neg_delta, shared_.neg_delta[douts_.slot]);
            add_kept(dp, neg_delta, kept_, dropout_.scale);
        }
#pragma unroll
        for (int32_t i = 0; i < Products::kScores; ++i) dp[i] *= p_[i];
    }

    // ---- shared memory ----------------------------------------------------------------------------------------------

    // Rows are keys, as the registers have it: 128 bytes of 64 queries.
    __device__ __forceinline__ void store_ds() const {
        const int32_t lane = ptx::lane_id();
        const int32_t row = warpgroup_ * kWarpgroupRows + warp_ * kWarpRows + lane % kWarpRows;
        const auto base = ptx::shared_address(shared_.ds);
#pragma unroll
        for (int32_t k = 0; k < Products::kQuerySteps; ++k)
            ptx::stmatrix_x4(base + swizzled(row, 2 * k + lane / kWarpRows), ds_[k][0], ds_[k][1], ds_[k][2],
                             ds_[k][3]);
    }

    // To the copy engine, after the next fence: four registers of each thread side by side (finish.cu undoes it).
    __device__ __forceinline__ void stage_dq(const typename Products::DqColumns& dq) {
        shared_.dq_ring[warpgroup_].wait_free(staged_);
        staged_.advance();
        auto* to = reinterpret_cast<float4*>(shared_.dq[warpgroup_]) + threadIdx.x % kWarpgroupThreads;
#pragma unroll
        for (int32_t i = 0; i < Products::kDqColumns; i += 4)
            to[i / 4 * kWarpgroupThreads] = float4{dq[i], dq[i + 1], dq[i + 2], dq[i + 3]};
    }

    BackwardShared<kConfig>& shared_;
    const BackwardParams& params_;
    const Dropout& dropout_;
    const int32_t warpgroup_, warp_;
    const Products products_;

    float dk_[Products::kGradients], dv_[Products::kGradients];
    Scores p_;           // of the step; with a softcap, times its derivative
    Operand rounded_p_;  // of the step
    Operand ds_;         // of the step, rounded
    Kept kept_;          // of the step; only where weights are dropped

    RingPosition<kTaskSlots> tasks_;
    RingPosition<kTile.key_buffers> keys_;
    RingPosition<kTile.query_buffers> queries_;
    RingPosition<kTile.dout_buffers> douts_;
    RingPosition<1> values_, staged_;
    Range query_tiles_, unmasked_;  // of the task
    bool ascends_ = false;
    BackwardStep step_;
    bool is_first_ = true, ended_ = false, has_step_before_ = false;
    int32_t parity_ = 0;                                                 // of the step
    int32_t dq_key_slot_ = 0, dk_query_slot_ = 0, ended_task_slot_ = 0;  // of the step before
};

}  // namespace foveal::sm90
