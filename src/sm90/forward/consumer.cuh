// What a consumer warpgroup of the forward kernel does in its steps, and what it keeps in registers. When it does so,
// steps 4 to 10 of the kernel's schedule (kernel.cuh), is told by the steps (steps.hpp) and the walk through the tiles
// (walk.hpp).
#pragma once

#include "sm90/forward/consumer_warpgroup.cuh"
#include "sm90/forward/epilogue.cuh"
#include "sm90/forward/params.hpp"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/softmax.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/walk.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/dropout.cuh"
#include "sm90/scores/scores.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/product.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// The warps that corrected a reference, in kernels that count them (tests/sm90/rescale_test.cu): the library has none.
template <DType kType>
__device__ unsigned long long rescale_count;

template <ForwardConfig kConfig>
class Consumer : public ConsumerWarpgroup<Consumer<kConfig>, Shared<kConfig>, kConfig.tile, work_traits_of(kConfig)> {
    static constexpr ForwardTile kTile = kConfig.tile;
    static constexpr WorkTraits kTraits = work_traits_of(kConfig);
    using Base = ConsumerWarpgroup<Consumer, Shared<kConfig>, kTile, kTraits>;
    friend Walk<Consumer, kTile>;
    friend Steps<Consumer, kTile>;
    using Base::block_of, Base::first_key, Base::rows, Base::rows_in, Base::rows_left, Base::wait_staging;
    using Base::params_, Base::queries_, Base::query_tile_, Base::shared_, Base::warp_, Base::warpgroup_, Base::works_;
    using QK = ScoreProduct<kConfig.dtype, kTile.keys, kTile.head_dim>;
    using PV = OutputProduct<kConfig.dtype, kTile.keys, kTile.accumulators(), kTile.sums_in_product>;
    using RowSoftmax = Softmax<kConfig.dtype, kTile.keys, kTile.out_columns(), kTile.sums_in_product, kConfig.has_lse(),
                               kConfig.has_wide_scores()>;
    using ScoreOf = Scores<kConfig.dtype, kTile.keys, kConfig.has_softcap(), Work>;
    static constexpr int32_t kKsteps = PV::kSteps;
    // wgmmas before the end of P V at which the turn is passed
    static constexpr int32_t kLastKsteps = kKsteps - kTile.first_ksteps < 2 ? kKsteps - kTile.first_ksteps : 2;
    // Ksteps of P whose exponentials capped_step() takes before P V has run: more would spill. (Without turns there are
    // more warpgroups, with fewer registers each.)
    static constexpr int32_t kCappedKsteps =
        kTile.takes_turns ? kTile.first_ksteps + kTile.early_ksteps + (kConfig.has_lse() ? 0 : 1) : kTile.first_ksteps;
    using Exponentials = float[kTile.early_ksteps > 0 ? kTile.early_ksteps * 8 : 1];
    using CappedProbabilities = uint32_t[kKsteps][4];  // rounded: more of them fit
    using Scale = RowScale;
    static constexpr int32_t kOutPanels = kTile.out_columns() / kPanelColumns;

   public:
    __device__ __forceinline__ Consumer(Shared<kConfig>& shared, const ForwardMaps& maps, const ForwardParams& params,
                                        const Dropout& dropout, int32_t warpgroup)
        : Base(shared, params, warpgroup),
          maps_(maps),
          q_descriptor_(descriptor_low(shared.q[0][query_tile_], 0)),
          k_descriptor_(descriptor_low(shared.k[0], 0)),
          v_descriptor_(descriptor_low(shared.v[0] + first_column() * kTile.keys,
                                       kTile.sums_in_product ? static_cast<uint32_t>(offsetof(Shared<kConfig>, ones) -
                                                                                     offsetof(Shared<kConfig>, v))
                                                             : PV::kPanelBytes)),
          dropout_(dropout) {}

   private:
    __device__ __forceinline__ void wait_values(const RingPosition<kTile.stages>& at) { shared_.v_ring.wait_full(at); }
    __device__ __forceinline__ void release_values(int32_t slot) { shared_.v_ring.release(slot); }
    __device__ __forceinline__ bool all_of_warpgroup(bool condition) const {
        return ptx::barrier_red_and(vote_barrier(kTile.consumers, warpgroup_), kWarpgroupThreads, condition);
    }

    // This warpgroup's first column of the output.
    __device__ __forceinline__ int32_t first_column() const {
        return kTile.shares_rows ? warpgroup_ * kTile.out_columns() : 0;
    }

    // Has this warpgroup's tile rows past the end of the sequence?
    __device__ __forceinline__ bool any_row_past_end() const {
        const int32_t last = (query_tile_ + 1) * kWarpgroupWarps - 1;
        const int32_t slot = works_.slot;
        return shared_.segments[slot][last].query + kWarpRows > shared_.work[slot].len_q;
    }

    // What the scores still have to be multiplied by.
    __device__ __forceinline__ float scale_log2() const {
        return kConfig.modifies_scores() ? static_cast<float>(kLog2E) : params_.scale_log2;
    }

    __device__ __forceinline__ void issue_scores(int32_t k_slot) {
        constexpr uint32_t kBuffer = kTile.query_tiles() * kTile.query_bytes() / kDescriptorBytes;
        constexpr uint32_t kStage = kTile.k_bytes() / kDescriptorBytes;
        // With a single buffer all descriptors of Q are invariant, and kept in registers from the kernel's start on
        // (d 512: 250 bytes of spills, nvcc 13.0), unless they come from a value that is not.
        const uint32_t q = kTile.query_buffers == 1 ? uniform(q_descriptor_)
                                                    : q_descriptor_ + static_cast<uint32_t>(queries_.slot) * kBuffer;
        QK::issue(s_, q, k_descriptor_ + static_cast<uint32_t>(k_slot) * kStage);
    }

    // P V but for the last wgmmas, in two wgmma groups; and these, before which the turn is passed.
    __device__ __forceinline__ void issue_most_of_output(int32_t v_slot, bool accumulate) {
        const uint32_t v = v_descriptor(v_slot);
        ptx::wgmma_fence();
        PV::template issue<0, kTile.first_ksteps>(o_, p_, v, accumulate);
        ptx::wgmma_commit_group();
        PV::template issue<kTile.first_ksteps, kKsteps - kLastKsteps>(o_, p_, v, true);
    }
    __device__ __forceinline__ void issue_rest_of_output(int32_t v_slot) {
        PV::template issue<kKsteps - kLastKsteps, kKsteps>(o_, p_, v_descriptor(v_slot), true);
        ptx::wgmma_commit_group();
    }
    __device__ __forceinline__ uint32_t v_descriptor(int32_t slot) const {
        return PV::advance(v_descriptor_, static_cast<uint32_t>(slot * kTile.v_bytes()));
    }

    // The scores are there: alone, and while both groups of P V are still under way. Then all products are.
    __device__ __forceinline__ void finish_scores() {
        ptx::wgmma_wait_group<0>();
        ptx::pin(s_);
    }
    __device__ __forceinline__ void finish_scores_beside_output() {
        ptx::wgmma_wait_group<2>();
        ptx::pin(s_);
    }
    __device__ __forceinline__ void finish_products() {
        ptx::wgmma_wait_group<0>();
        ptx::pin(o_);
    }

    // From scores to P. What depends on the options of the scores is in consumer_scores.cuh.
    // A bias alone waits in this warp's staging rows when the scores come: from the tile's i-th block on its way ...
    __device__ __forceinline__ void fetch_bias(const BlockRange& blocks, int32_t i);
    // ... now there ...
    __device__ __forceinline__ void wait_bias();
    // ... with elements so high that base 2 would round scores too coarsely, before a reference follows them?
    __device__ __forceinline__ bool bias_is_high();
    // s = factor * s + (bias_factor * bias + constants of the rows).
    __device__ __forceinline__ void add_bias(float factor, float bias_factor, const float (&constants)[2],
                                             WideElements wide);
    __device__ __forceinline__ StagedElements<kTile.keys> staged_bias() const {
        static_assert(!kConfig.has_bias() || kTile.staging_bytes() >= kWarpgroupRows * kTile.keys * 2);
        return {shared_.out[warpgroup_], warp_, ptx::lane_id()};
    }

    // Masks, references and exponents of a tile's first block.
    __device__ __forceinline__ void start_rows(BlockRange& blocks);

    // Of a tile's later blocks: exponents from the products.
    __device__ __forceinline__ void take_exponents(const BlockRange& blocks, int32_t i);

    // ALiBi alone, in an unmasked block of which this warp's queries see one side: exponents at once. (The first block
    // of a tile needs the scores.)
    __device__ __forceinline__ bool shift_by_distances(const BlockRange& blocks, int32_t i);

    // Options, if there are any, and masks. The tile's band and row are read where they are needed, and not kept in
    // registers. true: softcap took the exact form.
    __device__ __forceinline__ bool modify_scores(const BlockRange& blocks, int32_t i);

    // A tree's part of it.
    __device__ __forceinline__ void hide_tree(const Work& work, int32_t first_key);

    __device__ __forceinline__ RowTotals totals() const { return softmax_.totals(); }
    __device__ __forceinline__ void first_probabilities() {
        softmax_.template probabilities<0, kKsteps>(s_, p_);
        softmax_.add_first(p_);
    }

    // 7: the new P takes the registers of the old one as the output product leaves them; some more exponentials wait in
    // registers of their own.
    __device__ __forceinline__ void first_exponentials(Exponentials& early) {
        ptx::pin(s_);
        ptx::wgmma_wait_group<1>();
        softmax_.template probabilities<0, kTile.first_ksteps>(s_, p_);
#pragma unroll
        for (int32_t c = 0; c < kTile.first_ksteps; ++c) ptx::pin(p_[c]);
        softmax_.template exponentials<kTile.first_ksteps, kTile.early_ksteps>(s_, early);
        ptx::pin(early);
    }

    // The rest of P, and its sums. true: a row has left its range.
    template <bool kFirstBlock>
    __device__ __forceinline__ bool last_exponentials(const Exponentials& early) {
        // Always so. Without a branch ptxas (13.0) moves exponentials ahead of the wait above, with their P in other
        // registers, and so needs up to 31 moves more a block (docs/performance-log, 12 and 26).
        if (params_.heads_per_kv <= 0) return false;
        softmax_.template round<kTile.first_ksteps, kTile.early_ksteps>(early, p_);
        softmax_.template probabilities<kTile.first_ksteps + kTile.early_ksteps, kKsteps>(s_, p_);
        if constexpr (!kFirstBlock) return softmax_.add(p_, o_);
        softmax_.add_first(p_);
        return false;
    }

    __device__ __forceinline__ void rescale(BlockRange& blocks, const RowTotals& before) {
        softmax_.rescale(s_, p_, o_, before, rows_left());
        if (softmax_.far(scale_log2())) blocks.unmasked = {0, 0};
        if constexpr (kConfig.counts_rescales)
            if (ptx::lane_id() == 0) atomicAdd(&rescale_count<kConfig.dtype>, 1ull);
    }

    // Of P of the i-th of blocks.visit, which its sums have seen whole.
    __device__ __forceinline__ void drop(const BlockRange& blocks, int32_t i);

    // Does capped_step() take the tile's unmasked blocks?
    __device__ __forceinline__ bool caps_late() const { return kConfig.has_softcap() && caps_late_; }

    // The exponents of a block that capped_step() takes. Built where it is used: returned from a function, it makes
    // nvcc 13.0 write 600 instructions more.
    struct Capped : CappedExponents<kTile.keys> {
        explicit __device__ __forceinline__ Capped(const Consumer& c)
            : CappedExponents<kTile.keys>(c.params_.scores.cap, c.params_.zero, c.s_, c.softmax_.minus_reference) {}
    };

    // 7 under softcap alone: as first_exponentials(), but P is rounded at once.
    __device__ __forceinline__ void first_capped(Capped& exponents, CappedProbabilities& early);

    // The rest of P, and its sums.
    __device__ __forceinline__ void last_capped(BlockRange& blocks, const RowTotals& before, Capped& exponents,
                                                const CappedProbabilities& early);

    // The rare case: a score for which the polynomial does not hold, or a row that has left its range.
    __device__ __forceinline__ void correct_cap(BlockRange& blocks, const RowTotals& before, Capped& exponents,
                                                bool grew);

    // Factors that turn O into the output; writes the log-sum-exp.
    __device__ __forceinline__ RowScale finish_rows(const RowTotals& totals, int32_t slot) {
        const float sink = rows_in(slot).sink;
        const float sink_log2 = kConfig.has_wide_scores() ? to_base_2(sink) : sink * static_cast<float>(kLog2E);
        RowScale scale{{softmax_.normaliser(totals, o_, 0, sink_log2), softmax_.normaliser(totals, o_, 1, sink_log2)}};
        if constexpr (kConfig.drops_weights())
            for (float& factor : scale.of) factor *= dropout_.call.scale;
        if constexpr (kConfig.has_lse()) {
            // Of warpgroups that share rows, one writes.
            if (params_.lse != nullptr && (!kTile.shares_rows || warpgroup_ == 0)) {
                const float lse[2] = {totals.log_sum_exp<kConfig.has_wide_scores()>(0, sink),
                                      totals.log_sum_exp<kConfig.has_wide_scores()>(1, sink)};
                store_lse(params_, shared_.work[slot], rows_in(slot), ptx::lane_id(), lse);
            }
        }
        return scale;
    }

    // Panels of O from kFirst on to shared memory, as many as fit ...
    template <int32_t kFirst = 0>
    __device__ __forceinline__ void stage(RowScale scale) {
        if constexpr (kConfig.writes_f32()) return;
        stage_panels<kConfig.dtype, kFirst, kTile.staged_out_panels()>(shared_.out[warpgroup_], warp_, ptx::lane_id(),
                                                                       o_, scale);
    }

    // ... and from there, then the others, to global memory.
    template <int32_t kFirst = 0>
    __device__ __forceinline__ void store(RowScale scale, int32_t slot) {
        if constexpr (kConfig.writes_f32())
            return store_f32<kTile.out_columns()>(o_, scale, ptx::lane_id(), params_, shared_.work[slot], rows_in(slot),
                                                  first_column());
        store_panels<kTile.staged_out_panels()>(shared_.out[warpgroup_], warp_, ptx::lane_id(), maps_.out, params_,
                                                shared_.work[slot], rows_in(slot),
                                                first_column() + kFirst * kPanelColumns);
        if constexpr (kFirst + kTile.staged_out_panels() < kOutPanels) {
            wait_staging();
            stage<kFirst + kTile.staged_out_panels()>(scale);
            store<kFirst + kTile.staged_out_panels()>(scale, slot);
        }
    }

    const ForwardMaps& maps_;
    const uint32_t q_descriptor_, k_descriptor_, v_descriptor_;
    [[no_unique_address]] const ThreadDropout<kConfig.drops_weights()> dropout_;
    RowSoftmax softmax_;
    bool caps_late_ = false;  // the tile's unmasked blocks take capped_step()
    float s_[QK::kScores];
    float o_[kTile.accumulators()];
    uint32_t p_[kKsteps][4];
};

}  // namespace foveal::sm90
