// What a consumer warpgroup of the forward kernel over e4m3 does in its steps. When it does so, is told by the steps
// and the walk of the 16-bit kernel (forward/steps.hpp, forward/walk.hpp), which this one shares.
#pragma once

#include "sm90/forward/consumer_warpgroup.cuh"
#include "sm90/forward/e4m3/params.hpp"
#include "sm90/forward/e4m3/producer.cuh"
#include "sm90/forward/e4m3/shared.cuh"
#include "sm90/forward/e4m3/softmax.cuh"
#include "sm90/forward/epilogue.cuh"
#include "sm90/forward/walk.hpp"
#include "sm90/scores/mask.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <E4m3Config kConfig>
class E4m3Consumer
    : public ConsumerWarpgroup<E4m3Consumer<kConfig>, E4m3Shared<kConfig>, kConfig.walk(), work_traits_of(kConfig)> {
    static constexpr ForwardTile kTile = kConfig.walk();
    using Base = ConsumerWarpgroup<E4m3Consumer, E4m3Shared<kConfig>, kTile, work_traits_of(kConfig)>;
    friend Walk<E4m3Consumer, kTile>;
    friend Steps<E4m3Consumer, kTile>;
    using Base::block_of, Base::first_key, Base::rows, Base::rows_in, Base::rows_left;
    using Base::params_, Base::queries_, Base::shared_, Base::warp_, Base::warpgroup_, Base::works_;
    static constexpr int32_t kAccumulators = kConfig.accumulators();
    using RowSoftmax = E4m3Softmax<kAccumulators, kConfig.has_lse>;
    static constexpr int32_t kKsteps = RowSoftmax::kKsteps;
    // Ksteps of P that are rounded, and wait in registers of their own, before the last product of the block before has
    // run.
    
#ifndef E4_EARLY
#define E4_EARLY 2
#endif
    static constexpr int32_t kEarlyKsteps = E4_EARLY;
    static constexpr int32_t kPartAccumulators = Fragment::size(kPartChannels);
    static constexpr int32_t kLastAccumulators = kPartAccumulators + Fragment::size(8);  // with the sums
    using Exponentials = uint32_t[kKsteps][4];
    using Scale = RowScale;

   public:
    __device__ __forceinline__ E4m3Consumer(E4m3Shared<kConfig>& shared, const ForwardMaps& maps,
                                            const ForwardParams& params, int32_t warpgroup)
        : Base(shared, params, warpgroup),
          maps_(maps),
          q_descriptor_(descriptor_low(shared.q[0][warpgroup], 0)),
          k_descriptor_(descriptor_low(shared.k[0], 0)),
          v_descriptor_(descriptor_low(shared.transposed_v[0], 0)) {
        clear_output();
    }

   private:
    __device__ __forceinline__ void wait_values(const RingPosition<kTile.stages>& at) {
        shared_.transposed_ring.wait_full(at);
    }
    __device__ __forceinline__ void release_values(int32_t slot) { shared_.transposed_ring.release(slot); }
    __device__ __forceinline__ void take_last_turn() {
        is_last_output_ = true;
        Base::take_last_turn();
    }

    // 5: S = Q K^T of a block ...
    __device__ __forceinline__ void issue_scores(int32_t k_slot) {
        const uint32_t q =
            q_descriptor_ + static_cast<uint32_t>(queries_.slot) * (kTile.rows() * kPanelRowBytes / kDescriptorBytes);
        const uint32_t k =
            k_descriptor_ + static_cast<uint32_t>(k_slot) * (kE4m3Keys * kPanelRowBytes / kDescriptorBytes);
        is_last_output_ = false;
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kConfig.head_dim / kE4m3Kstep; ++step)
            ptx::wgmma_m64n128k32_e4m3_ss(s_, descriptor(q + step * (kE4m3Kstep / kDescriptorBytes)),
                                          descriptor(k + step * (kE4m3Kstep / kDescriptorBytes)), step != 0);
        ptx::wgmma_commit_group();
    }

    // ... and, behind them, the first part of P V of the block before. O itself is no accumulator of the tensor cores,
    // which would round it to their 14 bits once a block.
    __device__ __forceinline__ void issue_most_of_output(int32_t v_slot, bool) {
        v_slot_ = v_slot;
        if constexpr (kConfig.parts() == 1)
            issue_part<0>(last_part_);
        else
            issue_part<0>(part_);
    }
    __device__ __forceinline__ void issue_rest_of_output(int32_t) {}

    template <int32_t kPart, int32_t kSize>
    __device__ __forceinline__ void issue_part(float (&part)[kSize]) {
        constexpr uint32_t kStage = kConfig.rows_of_v() * kPanelRowBytes,
                           kFirst = kPart * kPartChannels * kPanelRowBytes;
        const uint32_t v = v_descriptor_ + (static_cast<uint32_t>(v_slot_) * kStage + kFirst) / kDescriptorBytes;
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kKsteps; ++step)
            ptx::wgmma_e4m3_rs(part, p_[step], descriptor(v + step * (kE4m3Kstep / kDescriptorBytes)), step != 0);
        ptx::wgmma_commit_group();
    }
    template <int32_t kPart, int32_t kSize>
    __device__ __forceinline__ void add_part(float (&part)[kSize]) {
        ptx::pin(part);
#pragma unroll
        for (int32_t i = 0; i < kSize; ++i) o_[kPart * kPartAccumulators + i] += part[i];
    }

    // The scores are there: alone, and while a part of P V is still under way.
    __device__ __forceinline__ void finish_scores() {
        ptx::wgmma_wait_group<0>();
        ptx::pin(s_);
    }
    __device__ __forceinline__ void finish_scores_beside_output() {
        ptx::wgmma_wait_group<1>();
        ptx::pin(s_);
    }
    // The next part follows the one that is there.
    __device__ __forceinline__ void next_part() {
        if constexpr (kConfig.parts() > 1) {
            ptx::wgmma_wait_group<0>();
            add_part<0>(part_);
            issue_part<1>(last_part_);
        }
    }
    __device__ __forceinline__ void finish_products() {
        if (is_last_output_) next_part();
        ptx::wgmma_wait_group<0>();
        add_part<kConfig.parts() - 1>(last_part_);
    }

    // 6: options, masks, and S becomes exponents.
    static __device__ __forceinline__ void fetch_bias(const BlockRange&, int32_t) {}
    static __device__ __forceinline__ void drop(const BlockRange&, int32_t) {}
    __device__ __forceinline__ void take_exponents(const BlockRange& blocks, int32_t i) {
        if (!blocks.unmasked.contains(block_of(blocks, i))) {
            if (scales_first_) RowSoftmax::scale_scores(s_, factor());
            mask(blocks, i);
            if (i == blocks.visit.begin + 1) softmax_.start_unseen(s_);
        }
        softmax_.shift(s_);
        moved_ = Base::any_of_warp(softmax_.leaves_range(s_));
        if (moved_) softmax_.move(s_, rows_left());
    }
    __device__ __forceinline__ void start_rows(BlockRange& blocks) {
        // Multiplied by a number that is not positive, scores would not keep their order, nor a mask's -inf.
        float factor = this->factor();
        scales_first_ = !(factor >= 0x1p-126f);
        if (scales_first_) {
            RowSoftmax::scale_scores(s_, factor);
            factor = 1.0f;
        }
        if (!blocks.unmasked.contains(block_of(blocks, blocks.visit.begin))) mask(blocks, blocks.visit.begin);
        if (softmax_.start(s_, factor, rows_left()) && !scales_first_) {
            scales_first_ = true;
            RowSoftmax::scale_scores(s_, factor);
            softmax_.scale = 1.0f;
        }
        if (scales_first_) blocks.unmasked = {0, 0};  // take_exponents() looks there alone
        softmax_.shift(s_);
    }
    __device__ __forceinline__ float factor() const { return shared_.factors[works_.slot].score_log2; }
    __device__ __forceinline__ void mask(const BlockRange& blocks, int32_t i) {
        const int32_t lane = ptx::lane_id();
        hide_by_band(s_, shared_.work[works_.slot].band, rows().query + Fragment::first_row(lane), first_key(blocks, i),
                     lane);
    }

    __device__ __forceinline__ RowTotals totals() const { return softmax_.totals(); }
    __device__ __forceinline__ void first_probabilities() { softmax_.template probabilities<0, kKsteps>(s_, p_); }

    // 7, 8: the first of the new P while the old one is still multiplied ...
    __device__ __forceinline__ void first_exponentials(Exponentials& early) {
        ptx::pin(s_);
        softmax_.template probabilities<0, kEarlyKsteps>(s_, early);
#pragma unroll
        for (int32_t c = 0; c < kEarlyKsteps; ++c) ptx::pin(early[c]);
        next_part();
    }
    // ... and the rest of it. true: a row has left its range.
    template <bool kFirstBlock>
    __device__ __forceinline__ bool last_exponentials(const Exponentials& early) {
        if (params_.heads_per_kv <= 0) return false;  // never: as in the 16-bit consumer
#pragma unroll
        for (int32_t c = 0; c < kEarlyKsteps; ++c)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) p_[c][i] = early[c][i];
        softmax_.template probabilities<kEarlyKsteps, kKsteps>(s_, p_);
        return !kFirstBlock && moved_;
    }
    __device__ __forceinline__ void rescale(BlockRange&, const RowTotals&) { softmax_.rescale(o_); }

    // There is no softcap.
    struct Capped {
        explicit __device__ __forceinline__ Capped(const E4m3Consumer&) {}
    };
    using CappedProbabilities = int32_t;
    static __device__ __forceinline__ bool caps_late() { return false; }
    __device__ __forceinline__ void first_capped(Capped&, CappedProbabilities&) {}
    __device__ __forceinline__ void last_capped(BlockRange&, const RowTotals&, Capped&, const CappedProbabilities&) {}
    __device__ __forceinline__ OwnWork own_work() const { return {}; }

    // Factors that turn O into the output; writes the log-sum-exp.
    __device__ __forceinline__ RowScale finish_rows(const RowTotals& totals, int32_t slot) {
        const float sink = rows_in(slot).sink, factor = shared_.factors[slot].out;
        RowScale scale;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float keys = o_[Fragment::size(kConfig.head_dim) + 2 * r];
            scale.of[r] = factor * totals.normaliser(keys, r, sink * static_cast<float>(kLog2E));
        }
        if constexpr (kConfig.has_lse) {
            const float lse[2] = {totals.log_sum_exp<false>(0, sink), totals.log_sum_exp<false>(1, sink)};
            store_lse(params_, shared_.work[slot], rows_in(slot), ptx::lane_id(), lse);
        }
        return scale;
    }
    __device__ __forceinline__ void clear_output() {
#pragma unroll
        for (int32_t i = 0; i < kAccumulators; ++i) o_[i] = 0.0f;
    }

    __device__ __forceinline__ void stage(RowScale scale) {
        stage_panels<kConfig.out, 0, kTile.staged_panels>(shared_.out[warpgroup_], warp_, ptx::lane_id(), o_, scale);
        clear_output();
    }
    __device__ __forceinline__ void store(RowScale, int32_t slot) {
        store_panels<kTile.staged_panels>(shared_.out[warpgroup_], warp_, ptx::lane_id(), maps_.out, params_,
                                          shared_.work[slot], rows_in(slot), 0);
    }

    const ForwardMaps& maps_;
    const uint32_t q_descriptor_, k_descriptor_, v_descriptor_;
    RowSoftmax softmax_;
    bool moved_ = false;         // a reference, for the block that the exponentials are of
    bool scales_first_ = false;  // the tile's scores are scaled before a reference is subtracted
    int32_t v_slot_ = 0;
    bool is_last_output_ = false;  // without scores beside it; the compiler knows it wherever it is asked
    float s_[RowSoftmax::kScores];
    float o_[kAccumulators];
    float part_[kPartAccumulators];       // products of a block, of the first channels of O
    float last_part_[kLastAccumulators];  // of the last, and the sums
    uint32_t p_[kKsteps][4];
};

}  // namespace foveal::sm90
