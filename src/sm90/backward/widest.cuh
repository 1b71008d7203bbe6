// One gradient, dK or dV or dQ, of heads of up to 512 channels, which even the wide kernels' registers and shared
// memory cannot hold: a kernel for each. A CTA has 64 rows of its own, keys or queries, whose gradient it sums over the
// rows of the other side, 64 a step. Each of its two consumer warpgroups has half of the gradient's columns and
// computes half of the step's scores.
//
//              own rows      whole tile of the others    panels of the others
//   dK         K, V          Q, for S and the sums       dO, for dP
//   dV         K             dO, for the sums            Q, for S
//   dQ         Q, dO         K, for S and the sums       V, for dP
//
//   [producer, warp 0]  own rows; for every step the whole tile.
//   [producer, warp 1]  own rows; for every step the other tile, a panel of 64 columns at a time.
//   [consumer]          S, from -lse / scale on, and dP, from -delta on, of 32 of the others; P or dS, rounded.
//   [consumer]          both warpgroups exchange these through shared memory; sums of all 64, into half of the columns.
// Right before fast: nothing overlaps but the copies of panels and what the two warpgroups do.
#pragma once

#include <cstdint>

#include "sm90/backward/accumulators.cuh"
#include "sm90/backward/await.cuh"
#include "sm90/backward/epilogue.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/scores.cuh"
#include "sm90/backward/widest_producer.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/scores/dropout.cuh"

namespace foveal::sm90 {

// ---- consumer -------------------------------------------------------------------------------------------------------

template <BackwardConfig kConfig, WidestGradient kGradient>
class WidestConsumer {
    using Shared = WidestShared<kConfig, kGradient>;
    using W = typename Shared::W;
    static constexpr DType kType = kConfig.dtype;
    static constexpr bool kOfKeys = Shared::kOfKeys;
    static constexpr int32_t kBoth = kBackwardConsumers * kWarpgroupThreads;
    static constexpr int32_t kScores = Fragment::size(Shared::kColumns);
    static constexpr int32_t kGradientColumns = W::kHeadDim / kBackwardConsumers;
    static constexpr int32_t kPanelSteps = kPanelRowBytes / Format<kType>::kKstepBytes;
    static constexpr uint32_t kPanel = W::kPanelBytes / kDescriptorBytes;
    static constexpr uint32_t kKstep = Format<kType>::kKstepBytes / kDescriptorBytes;
    using Scores = float[kScores];
    using Kept = KeptScores<Shared::kColumns, kOfKeys>;

   public:
    __device__ __forceinline__ WidestConsumer(Shared& shared, const BackwardParams& params, const Dropout& dropout,
                                              int32_t warpgroup)
        : shared_(shared),
          params_(params),
          warpgroup_(warpgroup),
          row_(shared.task.row +
               uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / kWarpThreads) * kWarpRows),
          dropout_(dropout) {}

    __device__ __forceinline__ void run() {
#pragma unroll
        for (float& x : sums_) x = 0;
        if (shared_.task.visited.size() > 0) walk();
        const WidestTask& task = shared_.task;
        const SequenceRows rows = kOfKeys ? task.of.k : task.of.q;
        constexpr bool kIsDv = kGradient == WidestGradient::dv;
        BackwardOut out = kIsDv ? params_.dv : kOfKeys ? params_.dk : params_.dq;
        const int32_t column = warpgroup_ * kGradientColumns;
        out.data = static_cast<uint16_t*>(out.data) + column;
        store_gradient<kType>(sums_, out, {task.of.batch, rows.first, task.head, row_, rows.length},
                              (kIsDv ? params_.head_dim_v : params_.head_dim) - column,
                              kIsDv ? scale_of_dv() : params_.scale);
    }

   private:
    __device__ __forceinline__ float scale_of_dv() const {
        if constexpr (kConfig.drops_weights()) return dropout_.call.scale;
        return 1.0F;
    }

    __device__ __forceinline__ void walk() {
        const Range visited{uniform(shared_.task.visited.begin), uniform(shared_.task.visited.end)};
        step_ = BackwardStep::first(visited, true);
        if constexpr (!kOfKeys) read_rows();
        if constexpr (Shared::kHasDp) ptx::mbarrier_wait(shared_.own_full[Shared::kWhole], 0);
        ptx::mbarrier_wait(shared_.own_full[Shared::kByPanels], 0);
        for (bool more = true; more; more = step_.advance(visited, true, kOfKeys ? params_.heads_per_kv : 1)) {
            shared_.whole_ring.wait_full(whole_);
            shared_.panel_ring.wait_full(panels_);
            typename W::Operand factors;
            Scores p;
            start_scores(p);
            if constexpr (Shared::kHasDp) {
                multiply_whole(p);
                exponentiate(p);
                Scores dp;
                start(dp, shared_.neg_delta, neg_delta_);
                if constexpr (kConfig.drops_weights())
                    multiply_kept(dp);
                else
                    multiply_panels(dp);
#pragma unroll
                for (int32_t i = 0; i < kScores; ++i) dp[i] *= p[i];
                exchange(factors, dp);
            } else {
                multiply_panels(p);
                exponentiate(p);
                drop(p);
                exchange(factors, p);
            }
            add(factors);
            shared_.whole_ring.release(0);
            whole_.advance();
        }
    }

    // -lse and -delta of the thread's two rows. Those past the sequence's end see nothing.
    __device__ __forceinline__ void read_rows() {
        const WidestTask& task = shared_.task;
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            const int32_t row = row_ + Fragment::first_row(ptx::lane_id()) + r * Fragment::kRowDistance;
            const bool exists = row < task.of.q.length;
            const int64_t at = params_.unit(task.of.slot + row / kBackwardQueries, task.head) * kBackwardQueries +
                               row % kBackwardQueries;
            neg_lse_[r] = exists ? params_.workspace.neg_lse[at] : -INFINITY;
            neg_delta_[r] = exists ? params_.workspace.neg_delta[at] : 0.0F;
        }
    }

    // At a value of each query: where these are the columns, of the step's; where they are the rows, of the thread's.
    __device__ __forceinline__ void start(Scores& x, const float* of_step, const float (&of_thread)[Fragment::kRows]) {
        if constexpr (kOfKeys) {
            start_columns(x, of_step + warpgroup_ * Shared::kColumns);
        } else {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) x[i] = of_thread[Fragment::row(i)];
        }
    }

    // With options scores start at 0.
    __device__ __forceinline__ void start_scores(Scores& x) {
        if constexpr (kConfig.has_options()) {
#pragma unroll
            for (float& one : x) one = 0;
        } else {
            start(x, shared_.neg_lse, neg_lse_);
            hide(x);
        }
    }

    // To P; with options and towards dS, times what a softcap's derivative is.
    __device__ __forceinline__ void exponentiate(Scores& x) const {
        if constexpr (kConfig.has_options()) {
            const WidestTask& task = shared_.task;
            const int32_t row = first_row(), column = first_column();
            const int32_t head = kOfKeys ? task.head * params_.heads_per_kv + step_.head : task.head;
            const float* const neg_lse =
                kOfKeys ? shared_.neg_lse + warpgroup_ * Shared::kColumns + Fragment::first_column(ptx::lane_id())
                        : neg_lse_;
            BackwardScores<kType, Shared::kColumns, kOfKeys>(params_, task.of, head, kOfKeys ? row : column,
                                                             kOfKeys ? column : row)
                .template probabilities<Shared::kHasDp>(x, neg_lse);
        } else {
#pragma unroll
            for (float& one : x) one = ptx::ex2(one * params_.scale_log2);
            ptx::pin(x);
        }
    }

    // The thread's first, of the sequence; of the step's others.
    __device__ __forceinline__ int32_t first_row() const { return row_ + Fragment::first_row(ptx::lane_id()); }
    __device__ __forceinline__ int32_t first_column() const {
        return step_.tile * kWarpgroupRows + warpgroup_ * Shared::kColumns + Fragment::first_column(ptx::lane_id());
    }

    // The band has no chunks.
    __device__ __forceinline__ void hide(Scores& x) const {
        const WidestTask& task = shared_.task;
        if (task.unmasked.contains(step_.tile)) return;
        const Band& band = task.of.band;
        const int32_t column = first_column();
        if constexpr (kOfKeys) {
            hide_columns(x, band, first_row(), column);
        } else {
#pragma unroll
            for (int32_t r = 0; r < Fragment::kRows; ++r) {
                const Range seen = visible_keys(band, first_row() + r * Fragment::kRowDistance);
#pragma unroll
                for (int32_t i = 0; i < kScores; ++i)
                    if (Fragment::row(i) == r && !seen.contains(column + Fragment::column_offset(i))) x[i] = -INFINITY;
            }
        }
    }

    // x += own rows times a panel's of the others, this warpgroup's 32. Low words of descriptors.
    static __device__ __forceinline__ void issue_panel(Scores& x, uint32_t own, uint32_t others) {
#pragma unroll
        for (uint32_t step = 0; step < kPanelSteps; ++step)
            ptx::wgmma_ss<kType>(x, descriptor(own + step * kKstep), descriptor(others + step * kKstep), true);
    }
    __device__ __forceinline__ uint32_t low_word_of_others(const uint16_t* tile) const {
        return W::low_word(tile + warpgroup_ * Shared::kColumns * kPanelColumns);
    }

    __device__ __forceinline__ void multiply_whole(Scores& x) const {
        const uint32_t own = W::low_word(shared_.own[Shared::kWhole]), others = low_word_of_others(shared_.whole);
        ptx::pin(x);
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t panel = 0; panel < Shared::kPanels; ++panel)
            issue_panel(x, own + panel * kPanel, others + panel * kPanel);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        ptx::pin(x);
    }

    __device__ __forceinline__ void multiply_panels(Scores& x) {
        const uint32_t own = W::low_word(shared_.own[Shared::kByPanels]);
#pragma unroll 1
        for (uint32_t panel = 0; panel < Shared::kPanels; ++panel) {
            shared_.panel_ring.wait_full(panels_);
            ptx::pin(x);
            ptx::wgmma_fence();
            issue_panel(x, own + panel * kPanel, low_word_of_others(shared_.panels[panels_.slot]));
            ptx::wgmma_commit_group();
            ptx::wgmma_wait_group<0>();
            ptx::pin(x);
            shared_.panel_ring.release(panels_.slot);
            panels_.advance();
        }
    }

    // ---- dropout ----------------------------------------------------------------------------------------------------

    __device__ __forceinline__ Kept kept() const {
        const WidestTask& task = shared_.task;
        const int32_t head = kOfKeys ? task.head * params_.heads_per_kv + step_.head : task.head;
        const int32_t column = step_.tile * kWarpgroupRows + warpgroup_ * Shared::kColumns;
        return kept_scores<Shared::kColumns, kOfKeys>(
            dropout_.key, dropout_.call.threshold,
            static_cast<uint32_t>(task.of.sequence) * static_cast<uint32_t>(params_.heads_q) +
                static_cast<uint32_t>(head),
            kOfKeys ? row_ : column, kOfKeys ? column : row_);
    }

    // P, towards dV.
    __device__ __forceinline__ void drop(Scores& p) const {
        if constexpr (kConfig.drops_weights()) {
            const Kept kept = this->kept();
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (!kept.keeps(i)) p[i] = 0;
        }
    }

    // From -delta to what of dP comes through, less delta.
    __device__ __forceinline__ void multiply_kept(Scores& neg_delta) {
        const Kept kept = this->kept();
        Scores dp;
#pragma unroll
        for (float& x : dp) x = 0;
        multiply_panels(dp);
        add_kept(dp, neg_delta, kept, dropout_.call.scale);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) neg_delta[i] = dp[i];
    }

    // ---- sums -------------------------------------------------------------------------------------------------------

    // The warpgroup's half and the other's.
    __device__ __forceinline__ void exchange(typename W::Operand& factors, const Scores& half) const {
        constexpr int32_t kOwnSteps = W::kSteps / kBackwardConsumers;
        const auto thread = threadIdx.x % kWarpgroupThreads;
        uint32_t own[kOwnSteps][4];
        round_operand<kType>(own, half);
#pragma unroll
        for (int32_t k = 0; k < kOwnSteps; ++k)
            shared_.factors[warpgroup_ * kOwnSteps + k][thread] = uint4{own[k][0], own[k][1], own[k][2], own[k][3]};
        ptx::barrier_sync(kFactorsStored, kBoth);
#pragma unroll
        for (int32_t k = 0; k < W::kSteps; ++k) {
            const uint4 four = shared_.factors[k][thread];
            factors[k][0] = four.x, factors[k][1] = four.y, factors[k][2] = four.z, factors[k][3] = four.w;
        }
        ptx::barrier_sync(kFactorsRead, kBoth);
    }

    // The gradient's columns that the warpgroup has.
    __device__ __forceinline__ void add(const typename W::Operand& factors) {
        constexpr uint32_t kKstepRows = Format<kType>::kKstepColumns * kPanelRowBytes / kDescriptorBytes;
        const uint32_t whole = W::low_word(shared_.whole + warpgroup_ * kGradientColumns * W::kRows);
        ptx::pin(sums_);
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < W::kSteps; ++step)
            ptx::wgmma_rs_mn<kType>(sums_, factors[step], descriptor(whole + step * kKstepRows), true);
        ptx::wgmma_commit_group();
        ptx::wgmma_wait_group<0>();
        ptx::pin(sums_);
    }

    Shared& shared_;
    const BackwardParams& params_;
    const int32_t warpgroup_;
    const int32_t row_;  // the warp's first, of the sequence
    float sums_[Fragment::size(kGradientColumns)];
    float neg_lse_[Fragment::kRows], neg_delta_[Fragment::kRows];
    RingPosition<1> whole_;
    RingPosition<Shared::kPanelSlots> panels_;
    BackwardStep step_;
    [[no_unique_address]] const ThreadDropout<kConfig.drops_weights()> dropout_;
};

// ---- kernel ---------------------------------------------------------------------------------------------------------

// Of 64 keys of a KV head, or 64 queries of a head.
template <bool kOfKeys>
__device__ __forceinline__ void set_widest_task(WidestTask& task, const BackwardParams& params) {
    constexpr Slots kSlots{kWarpgroupRows};
    const BackwardSequences& sequences = params.sequences;
    const Lengths& own = kOfKeys ? sequences.k : sequences.q;
    const int32_t heads = kOfKeys ? params.heads_k : params.heads_q;
    const auto cta = static_cast<int32_t>(blockIdx.x), slots = static_cast<int32_t>(gridDim.x) / heads;
    const int32_t slot = kOfKeys ? cta / heads : slots - 1 - cta / heads;  // under a causal mask long ones first
    const int32_t number = kSlots.sequence_at(own, sequences.batch, slot);
    task.head = cta % heads;
    task.row = (slot - kSlots.of(own, number)) * kWarpgroupRows;
    task.of = task_of(sequences, sequences.of(number), number, kOfKeys ? task.head : task.head / params.heads_per_kv,
                      kOfKeys ? task.row : 0, kWarpgroupRows, true);
    const Band& band = task.of.band;
    const int32_t len_q = task.of.q.length;
    if (kOfKeys) {
        task.visited = task.of.query_tiles;
        task.unmasked = task.of.unmasked;
    } else if (task.row < len_q) {
        const BlockRange keys = kv_range(band, {task.row, min_i32(task.row + kWarpgroupRows, len_q)}, kWarpgroupRows);
        task.visited = keys.visit;
        task.unmasked = keys.unmasked;
    }
}

template <BackwardConfig kConfig, WidestGradient kGradient>
__device__ __forceinline__ void run_widest(WidestShared<kConfig, kGradient>& shared, const BackwardMaps& maps,
                                           const BackwardParams& params, const Dropout& dropout) {
    using Shared = WidestShared<kConfig, kGradient>;
    constexpr uint32_t kConsumerWarps = kBackwardConsumers * kWarpgroupWarps;
    if (threadIdx.x == 0) {
        shared.whole_ring.initialise(0, 1, kConsumerWarps);
        for (int32_t i = 0; i < Shared::kPanelSlots; ++i) shared.panel_ring.initialise(i, 1, kConsumerWarps);
        for (int32_t i = 0; i < 2; ++i) {
            ptx::mbarrier_init(shared.own_full[i], 1);
            ptx::mbarrier_init(shared.landed[i], 1);
        }
        ptx::fence_mbarrier_init();
    }
    await_kernel_before();
    if (threadIdx.x == 0) set_widest_task<Shared::kOfKeys>(shared.task, params);
    __syncthreads();
    const WidestTask& task = shared.task;
    if (task.row >= (Shared::kOfKeys ? task.of.k.length : task.of.q.length)) return;
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        if (task.visited.size() > 0) produce_widest<kConfig, kGradient>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        WidestConsumer<kConfig, kGradient>(shared, params, dropout, warpgroup - 1).run();
    }
}

template <class Instance, WidestGradient kGradient>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_of_widest(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                       const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
                       const __grid_constant__ BackwardParams params, const __grid_constant__ Dropout dropout) {
    extern __shared__ unsigned char shared_memory[];
    run_widest<Instance::kConfig, kGradient>(
        *reinterpret_cast<WidestShared<Instance::kConfig, kGradient>*>(shared_memory), {q_map, k_map, v_map, dout_map},
        params, dropout);
}

template <class Instance, WidestGradient kGradient>
const void* widest_kernel() {
    static_assert(sizeof(WidestShared<Instance::kConfig, kGradient>) <= static_cast<size_t>(kWidestSharedBytes));
    return reinterpret_cast<const void*>(&backward_of_widest<Instance, kGradient>);
}

}  // namespace foveal::sm90
