// What a consumer does between its two products where the options of the scores have a say: from scores to exponents,
// and, under softcap alone, to P. What each function is for is said where it is declared, in consumer.cuh.
#pragma once

#include "sm90/forward/consumer.cuh"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/scores/mask.cuh"
#include "sm90/scores/scores.cuh"
#include "sm90/scores/tree.cuh"

namespace foveal::sm90 {

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::take_exponents(const BlockRange& blocks, int32_t i) {
    if constexpr (kConfig.has_wide_scores()) softmax_.restarts = 0;
    if (shift_by_distances(blocks, i)) return;
    if (kConfig.has_bias() && blocks.unmasked.contains(block_of(blocks, i)) && !softmax_.is_low() && !bias_is_high()) {
        add_bias(params_.scale_log2, scale_log2(), softmax_.minus_reference, kBase2Elements);
        return;
    }
    modify_scores(blocks, i);
    if (kConfig.has_wide_scores() &&
        (softmax_.far(scale_log2()) || (params_.scores.may_be_wide && softmax_.is_wide(s_))))
        softmax_.shift_wide(s_, scale_log2());
    else
        softmax_.shift(s_);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ bool Consumer<kConfig>::modify_scores(const BlockRange& blocks, int32_t i) {
    const Work& work = shared_.work[works_.slot];
    const int32_t first_key = this->first_key(blocks, i), lane = ptx::lane_id();
    bool exactly = false;
    if constexpr (kConfig.has_bias())
        add_bias(params_.scores.scale, 1.0f, {0.0f, 0.0f}, kNaturalElements);
    else if constexpr (kConfig.modifies_scores())
        exactly = ScoreOf(params_.scores, work, rows(), first_key, lane).apply(s_);
    if constexpr (kConfig.any_keys && kConfig.has_options()) hide_tree(work, first_key);
    if (!blocks.unmasked.contains(block_of(blocks, i))) {
        hide_by_band(s_, known_band<kTraits>(work.band), rows().query + Fragment::first_row(lane), first_key, lane);
        // Far tiles pass here for every block, and tiles with rows that see none of the first for the second, so
        // that the others need not ask.
        if (i != blocks.visit.begin && softmax_.far(scale_log2())) {
            if constexpr (!kConfig.has_wide_scores()) softmax_.scale_scores(s_, scale_log2());
        } else if (i == blocks.visit.begin + 1) {
            softmax_.start_unseen(s_);
        }
    }
    return exactly;
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::hide_tree(const Work& work, int32_t first_key) {
    const TreeMask& tree = params_.places.tree;
    const int32_t first_of_tree = work.band.len_k - work.len_q, nodes = min_i32(work.len_q, 32 * tree.words);
    if (tree.data == nullptr || first_key >= first_of_tree + nodes || first_key + kTile.keys <= first_of_tree) return;
    const int32_t row = rows().query + Fragment::first_row(ptx::lane_id());
    const uint32_t* words =
        tree.data + work.batch * tree.batch_stride + (work.first_q + int64_t{row}) * tree.row_stride;
    hide_by_tree(s_, words, tree.row_stride, work.len_q - row,
                 first_key + Fragment::first_column(ptx::lane_id()) - first_of_tree, nodes);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ bool Consumer<kConfig>::shift_by_distances(const BlockRange& blocks, int32_t i) {
    if constexpr (!kConfig.has_options()) return false;
    const int32_t block = block_of(blocks, i);
    if (!params_.scores.only_alibi || !blocks.unmasked.contains(block)) return false;
    if (!(fabsf(rows().slope) <= kLargestLinearSlope)) return false;
    const Work& work = shared_.work[works_.slot];
    const int32_t first = rows().query + work.band.off - block * kTile.keys;
    const bool before = first >= kTile.keys - 1, after = first + kWarpRows - 1 <= 0;
    if (!before && !after) return false;
    const float slope_log2 = rows().slope * static_cast<float>(kLog2E);
    const int32_t lane = ptx::lane_id();
    alibi_exponents(s_, params_.scale_log2, before ? slope_log2 : -slope_log2,
                    first + Fragment::first_row(lane) - Fragment::first_column(lane), softmax_.minus_reference);
    return true;
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::fetch_bias(const BlockRange& blocks, int32_t i) {
    if constexpr (kConfig.has_bias()) {
        const Work& work = shared_.work[works_.slot];
        const ScoreMatrix& bias = params_.scores.bias;
        const int32_t row = rows().query, column = first_key(blocks, i);
        const auto* from = static_cast<const uint16_t*>(bias.data) + work.batch * bias.batch_stride +
                           rows().head * bias.head_stride + row * bias.row_stride + column * bias.key_stride;
        wait_staging();
        staged_bias().fetch(from, bias, work.len_q - row, work.band.len_k - column);
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ bool Consumer<kConfig>::bias_is_high() {
    if constexpr (!kConfig.has_bias()) return false;
    wait_bias();
    return staged_bias().reach(Format<kConfig.dtype>::kHighBits);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::wait_bias() {
    ptx::wait_for_copies();
    __syncwarp();
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::add_bias(float factor, float bias_factor,
                                                            const float (&constants)[2], WideElements wide) {
    if constexpr (kConfig.has_bias()) {
        wait_bias();
        add_staged_bias<kConfig.dtype>(s_, staged_bias(), factor, bias_factor, constants, wide);
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::start_rows(BlockRange& blocks) {
    const bool exactly = modify_scores(blocks, blocks.visit.begin);
    // Rows past the end must not decide how the others are capped; and where every warp already had to take the
    // exact form, its blocks would mostly be done twice. The whole warpgroup decides alike: a step holds its
    // wgmmas.
    if constexpr (kConfig.has_softcap()) caps_late_ = !any_row_past_end() && !all_of_warpgroup(exactly);
    softmax_.start(s_, scale_log2(), rows_left());
    if (softmax_.far(scale_log2())) {
        softmax_.scale_scores(s_, scale_log2());
        blocks.unmasked = {0, 0};
    }
    softmax_.shift(s_);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::drop(const BlockRange& blocks, int32_t i) {
    if constexpr (kConfig.drops_weights()) {
        const int32_t heads_q = params_.heads_k * params_.heads_per_kv;
        const int32_t sequence = shared_.work[works_.slot].sequence;
        const uint32_t head =
            static_cast<uint32_t>(sequence) * static_cast<uint32_t>(heads_q) + static_cast<uint32_t>(rows().head);
        drop_weights(p_, dropout_.key, threshold_pair(dropout_.call.threshold), head, rows().query,
                     first_key(blocks, i), ptx::lane_id());
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::first_capped(Capped& exponents, CappedProbabilities& early) {
    ptx::pin(s_);
    ptx::wgmma_wait_group<1>();
    softmax_.template probabilities_of<0, kTile.first_ksteps>(exponents, p_);
    softmax_.template probabilities_of<kTile.first_ksteps, kCappedKsteps>(exponents, early);
#pragma unroll
    for (int32_t c = 0; c < kCappedKsteps; ++c) ptx::pin(c < kTile.first_ksteps ? p_[c] : early[c]);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::last_capped(BlockRange& blocks, const RowTotals& before,
                                                               Capped& exponents, const CappedProbabilities& early) {
    bool grew = false;
    if (params_.heads_per_kv > 0) {  // as in last_exponentials()
#pragma unroll
        for (int32_t c = kTile.first_ksteps; c < kCappedKsteps; ++c)
#pragma unroll
            for (int32_t j = 0; j < 4; ++j) p_[c][j] = early[c][j];
        softmax_.template probabilities_of<kCappedKsteps, kKsteps>(exponents, p_);
        grew = softmax_.add(p_, o_);
    }
    if (__any_sync(~0u, grew || exponents.out_of_range())) correct_cap(blocks, before, exponents, grew);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void Consumer<kConfig>::correct_cap(BlockRange& blocks, const RowTotals& before,
                                                               Capped& exponents, bool grew) {
    if (__any_sync(~0u, exponents.out_of_range())) {
        cap_exactly(params_.scores, s_);
        softmax_.shift(s_);
        softmax_.take_back(before);
        softmax_.template probabilities<0, kKsteps>(s_, p_);
        grew = softmax_.add(p_, o_);
    } else {
        exponents.store(s_);
    }
    if (__any_sync(~0u, grew)) rescale(blocks, before);
}

}  // namespace foveal::sm90
