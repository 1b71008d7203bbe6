// A consumer warpgroup of the forward kernel: steps 4 to 10 of its schedule (forward.cuh).
#pragma once

#include "sm90/forward/epilogue.cuh"
#include "sm90/forward/params.hpp"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/softmax.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/scores.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/product.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

template <ForwardConfig kConfig>
class Consumer {
    static constexpr ForwardTile kTile = kConfig.tile;
    using QK = ScoreProduct<kConfig.dtype, kTile.keys, kTile.head_dim>;
    using PV = OutputProduct<kConfig.dtype, kTile.keys, kTile.accumulators(), kTile.sums_in_product>;
    using RowSoftmax =
        Softmax<kConfig.dtype, kTile.keys, kTile.out_columns(), kTile.sums_in_product, kConfig.has_lse()>;
    using ScoreOf = Scores<kConfig.dtype, kTile.keys, kConfig.has_softcap()>;
    static constexpr WorkTraits kTraits = work_traits_of(kConfig);
    static constexpr int32_t kKsteps = PV::kSteps;
    // wgmmas before the end of P V at which the turn is passed
    static constexpr int32_t kLastKsteps = kKsteps - kTile.first_ksteps < 2 ? kKsteps - kTile.first_ksteps : 2;
    // Ksteps of P whose exponentials capped_step() takes before P V has run: more would spill. (Without turns there are
    // more warpgroups, with fewer registers each.)
    static constexpr int32_t kCappedKsteps =
        kTile.takes_turns ? kTile.first_ksteps + kTile.early_ksteps + (kConfig.has_lse() ? 0 : 1) : kTile.first_ksteps;
    using Exponentials = float[kTile.early_ksteps > 0 ? kTile.early_ksteps * 8 : 1];
    static constexpr int32_t kOutPanels = kTile.out_columns() / kPanelColumns;
    static constexpr int32_t kTurnThreads = 2 * kWarpgroupThreads;

   public:
    __device__ __forceinline__ Consumer(Shared<kConfig>& shared, const ForwardMaps& maps, const ForwardParams& params,
                                        int32_t warpgroup)
        : shared_(shared),
          maps_(maps),
          params_(params),
          warpgroup_(warpgroup),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / 32)),
          query_tile_(kTile.shares_rows ? 0 : warpgroup),
          q_descriptor_(descriptor_low(shared.q[0][query_tile_], 0)),
          k_descriptor_(descriptor_low(shared.k[0], 0)),
          v_descriptor_(descriptor_low(shared.v[0] + first_column() * kTile.keys,
                                       kTile.sums_in_product ? static_cast<uint32_t>(offsetof(Shared<kConfig>, ones) -
                                                                                     offsetof(Shared<kConfig>, v))
                                                             : PV::kPanelBytes)) {}

    __device__ __forceinline__ void run() {
        BlockRange blocks;
        uint32_t computed = next_tile(blocks);
        if (computed == 0) return;
        if (warpgroup_ == kTile.consumers - 1) pass_turn_of(kTile.consumers - 1);  // warpgroup 0 begins
        bool has_begun = false;
        while (computed != 0) {
            if (is_own(computed)) {
                computed = compute_tiles(blocks);
                has_begun = true;
            } else {
                pass_over_tile(has_begun);
                computed = next_tile(blocks);
                has_begun = false;
            }
        }
        if (!has_begun) {  // the others' of the last output
            take_turn();
            pass_turn();
        }
        if (warpgroup_ == 0) take_turn_of(0);  // the one that the last warpgroup passed on
        ptx::bulk_wait_group_read();           // its shared memory goes with the CTA
    }

   private:
    // From this tile to the last, or to one that this warpgroup passes over: that one's `computed`. Its first K block
    // has then been passed over, and its first turn used for the last output.
    __device__ __forceinline__ uint32_t compute_tiles(BlockRange& blocks) {
        const RingPosition<kTile.stages> start = keys_;
        skip_keys(steps_before());
        first_scores(blocks);
        skip_values(start, steps_before());
        for (;;) {
            for (int32_t i = blocks.visit.begin + 1; i < blocks.visit.end; ++i)
                if (kConfig.has_softcap() && caps_late_ && blocks.unmasked.contains(block_of(blocks, i)))
                    capped_step(blocks, i);
                else
                    step(blocks, i);
            if constexpr (kTile.query_buffers > 1) free_queries();
            const bool accumulate = blocks.visit.size() > 1;
            const int32_t finished = work_slots_.slot;
            RingPosition<kTile.stages> next_values = values_;
            next_values.advance();
            int32_t skipped = steps_after();
            skip_keys(skipped);
            queries_.advance();
            work_slots_.advance();
            const uint32_t computed = next_tile(blocks);
            if (!is_own(computed)) {
                if (computed != 0) pass_over_keys();
                last_output(finished, accumulate);
                skip_values(next_values, skipped);
                return computed;
            }
            skip_keys(steps_before());
            skipped += steps_before();
            shared_.k_ring.wait_full(keys_);
            boundary(blocks, finished, accumulate);
            skip_values(next_values, skipped);
        }
    }

    // A tile in which only other warpgroups have rows: in step with them, since they share the rings and the turns.
    // has_begun: by compute_tiles().
    __device__ __forceinline__ void pass_over_tile(bool has_begun) {
        const int32_t count = uniform(shared_.work[work_slots_.slot].blocks.visit.size());
        for (int32_t i = 0; i < count; ++i, keys_.advance()) {
            if (i > 0 || !has_begun) {
                pass_over_keys();
                take_turn();
                pass_turn();
            }
            shared_.v_ring.wait_full(keys_);
            shared_.v_ring.release(keys_.slot);
            __syncwarp();
        }
        free_queries();
        free_work(work_slots_.slot);
        queries_.advance();
        work_slots_.advance();
    }
    __device__ __forceinline__ void pass_over_keys() {
        shared_.k_ring.wait_full(keys_);
        shared_.k_ring.release(keys_.slot);
        __syncwarp();
    }

    // 4-6: both products issued, the scores there; the output is still under way. The K block is known to be there.
    // last: block of its tile.
    __device__ __forceinline__ void scores_beside_output(bool accumulate, bool last) {
        const int32_t k_slot = keys_.slot;
        shared_.v_ring.wait_full(values_);
        take_turn();
        issue_scores(k_slot);
        issue_output(values_.slot, accumulate);
        values_ = keys_;
        keys_.advance();
        ptx::wgmma_wait_group<2>();
        ptx::pin(s_);
        shared_.k_ring.release(k_slot);
        free_single_queries(last);
    }

    // One block inside a tile, the i-th of blocks.visit.
    __device__ __forceinline__ void step(BlockRange& blocks, int32_t i) {
        const int32_t v_slot = values_.slot;
        fetch_bias(blocks, i);
        scores_beside_output(i > blocks.visit.begin + 1, i + 1 == blocks.visit.end);
        take_exponents(blocks, i);
        const RowTotals before = softmax_.totals();
        Exponentials early;
        first_exponentials(early, i + 1 < blocks.visit.end);
        finish_output(v_slot);
        if (__any_sync(~0u, last_exponentials<false>(early))) rescale(blocks, before);
    }

    // The same of an unmasked block under softcap alone: capped while the exponentials run.
    __device__ __forceinline__ void capped_step(BlockRange& blocks, int32_t i) {
        const int32_t v_slot = values_.slot;
        scores_beside_output(i > blocks.visit.begin + 1, i + 1 == blocks.visit.end);
        const RowTotals before = softmax_.totals();
        CappedExponents<kTile.keys> exponents(params_.scores.cap, params_.zero, s_, softmax_.minus_reference);
        uint32_t early[kKsteps][4];  // rounded: more of them fit
        ptx::pin(s_);
        ptx::wgmma_wait_group<1>();
        softmax_.template probabilities_of<0, kTile.first_ksteps>(exponents, p_);
        softmax_.template probabilities_of<kTile.first_ksteps, kCappedKsteps>(exponents, early);
#pragma unroll
        for (int32_t c = 0; c < kCappedKsteps; ++c) ptx::pin(c < kTile.first_ksteps ? p_[c] : early[c]);
        await_next_keys(i + 1 < blocks.visit.end);
        finish_output(v_slot);
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

    // The rare case of capped_step().
    __device__ __forceinline__ void correct_cap(BlockRange& blocks, const RowTotals& before,
                                                CappedExponents<kTile.keys>& exponents, bool grew) {
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

    __device__ __forceinline__ void rescale(BlockRange& blocks, const RowTotals& before) {
        softmax_.rescale(s_, p_, o_, before, rows_left());
        if (softmax_.far(scale_log2())) blocks.unmasked = {0, 0};
        if (params_.rescales != nullptr && ptx::lane_id() == 0) atomicAdd(params_.rescales, 1ull);
    }

    // 9: the first block of a tile beside the last output of the one in slot `finished`, which is rounded and staged
    // while the exponentials run.
    __device__ __forceinline__ void boundary(BlockRange& blocks, int32_t finished, bool accumulate) {
        const int32_t v_slot = values_.slot;
        fetch_bias(blocks, blocks.visit.begin);
        scores_beside_output(accumulate, blocks.visit.size() <= 1);
        const RowTotals ended = softmax_.totals();
        RowScale scale;
        if constexpr (!kTile.sums_in_product) scale = finish_rows(ended, finished);
        start_rows(blocks);
        Exponentials early;
        first_exponentials(early, blocks.visit.size() > 1);
        await_staging();
        finish_output(v_slot);
        if constexpr (kTile.sums_in_product) scale = finish_rows(ended, finished);
        stage<0>(scale);
        last_exponentials<true>(early);
        store(scale, finished);
        free_work(finished);
    }

    __device__ __forceinline__ void first_scores(BlockRange& blocks) {
        const int32_t k_slot = keys_.slot;
        fetch_bias(blocks, blocks.visit.begin);
        shared_.k_ring.wait_full(keys_);
        take_turn();
        issue_scores(k_slot);
        pass_turn();
        values_ = keys_;
        keys_.advance();
        ptx::wgmma_wait_group<0>();
        ptx::pin(s_);
        shared_.k_ring.release(k_slot);
        free_single_queries(blocks.visit.size() <= 1);
        start_rows(blocks);
        softmax_.template probabilities<0, kKsteps>(s_, p_);
        softmax_.add_first(p_);
        if (blocks.visit.size() > 1) shared_.k_ring.wait_full(keys_);
    }

    __device__ __forceinline__ void last_output(int32_t finished, bool accumulate) {
        shared_.v_ring.wait_full(values_);
        take_turn_of(uniform(warpgroup_));  // computed anew: no register for it over the whole loop
        issue_output(values_.slot, accumulate);
        await_staging();
        finish_output(values_.slot);
        const RowScale scale = finish_rows(softmax_.totals(), finished);
        stage<0>(scale);
        store(scale, finished);
        free_work(finished);
    }

    // Blocks of the tile that only other warpgroups need. They are waited for, so that this warpgroup is never further
    // ahead than the ring is long.
    __device__ __forceinline__ void skip_keys(int32_t count) {
        if constexpr (kTile.has_own_blocks())
            for (; count > 0; --count, keys_.advance()) {
                shared_.k_ring.wait_full(keys_);
                take_turn();
                pass_turn();
                shared_.k_ring.release(keys_.slot);
                __syncwarp();
            }
    }
    __device__ __forceinline__ void skip_values(RingPosition<kTile.stages> from, int32_t count) {
        if constexpr (kTile.has_own_blocks())
            for (; count > 0; --count, from.advance()) {
                shared_.v_ring.wait_full(from);
                shared_.v_ring.release(from.slot);
                __syncwarp();
            }
    }

    // Of a tile's later blocks: exponents from the products.
    __device__ __forceinline__ void take_exponents(const BlockRange& blocks, int32_t i) {
        if (shift_by_distances(blocks, i)) return;
        if (kConfig.has_bias() && blocks.unmasked.contains(block_of(blocks, i))) {
            add_bias(params_.scale_log2, scale_log2(), softmax_.minus_reference);
        } else {
            finish_scores(blocks, i);
            softmax_.shift(s_);
        }
    }

    // Options, if there are any, and masks. The tile's band and row are read where they are needed, and not kept in
    // registers. true: softcap took the exact form.
    __device__ __forceinline__ bool finish_scores(const BlockRange& blocks, int32_t i) {
        const Work& work = shared_.work[work_slots_.slot];
        const int32_t first_key = this->first_key(blocks, i), lane = ptx::lane_id();
        bool exactly = false;
        if constexpr (kConfig.has_bias())
            add_bias(params_.scores.scale, 1.0f, {0.0f, 0.0f});
        else if constexpr (kConfig.modifies_scores())
            exactly = ScoreOf(params_.scores, work, rows(), first_key, lane).apply(s_);
        if (!blocks.unmasked.contains(block_of(blocks, i))) {
            softmax_.mask(s_, known_band<kTraits>(work.band), rows().query + Fragment::first_row(lane), first_key,
                          lane);
            // Far tiles pass here for every block, and tiles with rows that see none of the first for the second, so
            // that the others need not ask.
            if (i != blocks.visit.begin && softmax_.far(scale_log2()))
                softmax_.scale_scores(s_, scale_log2());
            else if (i == blocks.visit.begin + 1)
                softmax_.start_unseen(s_);
        }
        return exactly;
    }

    // ALiBi alone, in an unmasked block of which this warp's queries see one side: exponents at once. (The first block
    // of a tile needs the scores.)
    __device__ __forceinline__ bool shift_by_distances(const BlockRange& blocks, int32_t i) {
        if constexpr (!kConfig.has_options()) return false;
        const int32_t block = block_of(blocks, i);
        if (!params_.scores.only_alibi || !blocks.unmasked.contains(block)) return false;
        const Work& work = shared_.work[work_slots_.slot];
        const int32_t first = rows().query + work.band.off - block * kTile.keys;
        const bool before = first >= kTile.keys - 1, after = first + kWarpRows - 1 <= 0;
        if (!before && !after) return false;
        const float slope_log2 = rows().slope * static_cast<float>(kLog2E);
        const int32_t lane = ptx::lane_id();
        alibi_exponents(s_, params_.scale_log2, before ? slope_log2 : -slope_log2,
                        first + Fragment::first_row(lane) - Fragment::first_column(lane), softmax_.minus_reference);
        return true;
    }

    // A bias alone waits in this warp's staging rows when the scores come: from the tile's i-th block on its way ...
    __device__ __forceinline__ void fetch_bias(const BlockRange& blocks, int32_t i) {
        if constexpr (kConfig.has_bias()) {
            const Work& work = shared_.work[work_slots_.slot];
            const ScoreMatrix& bias = params_.scores.bias;
            const int32_t row = rows().query, column = first_key(blocks, i);
            const auto* from = static_cast<const uint16_t*>(bias.data) + work.batch * bias.batch_stride +
                               rows().head * bias.head_stride + row * bias.row_stride + column;
            await_staging();
            staged_bias().fetch(from, bias.row_stride, work.len_q - row, work.band.len_k - column);
        }
    }
    // ... and now there: s = factor * s + (bias_factor * bias + constants of the rows).
    __device__ __forceinline__ void add_bias(float factor, float bias_factor, const float (&constants)[2]) {
        if constexpr (kConfig.has_bias()) {
            ptx::wait_for_copies();
            __syncwarp();
            add_staged_bias<kConfig.dtype>(s_, staged_bias(), factor, bias_factor, constants);
        }
    }
    __device__ __forceinline__ StagedElements<kTile.keys> staged_bias() const {
        static_assert(!kConfig.has_bias() || kTile.staging_bytes() >= kWarpgroupRows * kTile.keys * 2);
        return {shared_.out[warpgroup_], warp_, ptx::lane_id()};
    }

    // Masks, references and exponents of a tile's first block.
    __device__ __forceinline__ void start_rows(BlockRange& blocks) {
        const bool exactly = finish_scores(blocks, blocks.visit.begin);
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

    // The i-th of blocks.visit, and its first key.
    __device__ __forceinline__ int32_t block_of(const BlockRange& blocks, int32_t i) const {
        return block_of_step<kTraits>(params_, blocks.visit, i);
    }
    __device__ __forceinline__ int32_t first_key(const BlockRange& blocks, int32_t i) const {
        return block_of(blocks, i) * kTile.keys;
    }

    // Has this warpgroup's tile rows past the end of the sequence?
    __device__ __forceinline__ bool any_row_past_end() const {
        const int32_t last = (query_tile_ + 1) * kWarpgroupWarps - 1;
        const int32_t slot = work_slots_.slot;
        return shared_.segments[slot][last].query + kWarpRows > shared_.work[slot].len_q;
    }

    __device__ __forceinline__ bool all_of_warpgroup(bool condition) const {
        return ptx::barrier_red_and(vote_barrier(kTile.consumers, warpgroup_), kWarpgroupThreads, condition);
    }

    __device__ __forceinline__ bool is_own(uint32_t computed) const { return (computed >> query_tile_ & 1) != 0; }

    // Of the sequence, from this thread's first row on.
    __device__ __forceinline__ int32_t rows_left() const {
        return shared_.work[work_slots_.slot].len_q - rows().query - Fragment::first_row(ptx::lane_id());
    }

    // What the scores still have to be multiplied by.
    __device__ __forceinline__ float scale_log2() const {
        return kConfig.modifies_scores() ? static_cast<float>(kLog2E) : params_.scale_log2;
    }

    // This warp's rows, in the tile that it is at, or in that of a slot; and this warpgroup's first column of the
    // output.
    __device__ __forceinline__ const Segment& rows() const { return rows_in(work_slots_.slot); }
    __device__ __forceinline__ const Segment& rows_in(int32_t slot) const {
        return shared_.segments[slot][query_tile_ * kWarpgroupWarps + warp_];
    }
    __device__ __forceinline__ int32_t first_column() const {
        return kTile.shares_rows ? warpgroup_ * kTile.out_columns() : 0;
    }

    // 7: the new P takes the registers of the old one as the output product leaves them; some more exponentials wait in
    // registers of their own.
    __device__ __forceinline__ void first_exponentials(Exponentials& early, bool more_blocks) {
        ptx::pin(s_);
        ptx::wgmma_wait_group<1>();
        softmax_.template probabilities<0, kTile.first_ksteps>(s_, p_);
#pragma unroll
        for (int32_t c = 0; c < kTile.first_ksteps; ++c) ptx::pin(p_[c]);
        softmax_.template exponentials<kTile.first_ksteps, kTile.early_ksteps>(s_, early);
        ptx::pin(early);
        await_next_keys(more_blocks);
    }

    // The next step needs them. Amid the exponentials it costs no time, and without a branch there ptxas (13.0) moves
    // those before it behind the wait for P V: 1.001 instead of 0.931 of the best peer's time at b1 s16384 (H200,
    // 2026-11-23).
    __device__ __forceinline__ void await_next_keys(bool more_blocks) {
        if (more_blocks) shared_.k_ring.wait_full(keys_);
    }

    // 8: the output of a block is there.
    __device__ __forceinline__ void finish_output(int32_t v_slot) {
        ptx::wgmma_wait_group<0>();
        ptx::pin(o_);
        shared_.v_ring.release(v_slot);
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

    __device__ __forceinline__ void issue_scores(int32_t k_slot) {
        constexpr uint32_t kBuffer = kTile.query_tiles() * kTile.query_bytes() / kDescriptorBytes;
        constexpr uint32_t kStage = kTile.k_bytes() / kDescriptorBytes;
        // With a single buffer all descriptors of Q are invariant, and kept in registers from the kernel's start on
        // (d 512: 250 bytes of spills, nvcc 13.0), unless they come from a value that is not.
        const uint32_t q = kTile.query_buffers == 1 ? uniform(q_descriptor_)
                                                    : q_descriptor_ + static_cast<uint32_t>(queries_.slot) * kBuffer;
        QK::issue(s_, q, k_descriptor_ + static_cast<uint32_t>(k_slot) * kStage);
    }

    __device__ __forceinline__ void issue_output(int32_t v_slot, bool accumulate) {
        const uint32_t v = PV::advance(v_descriptor_, static_cast<uint32_t>(v_slot * kTile.v_bytes()));
        ptx::wgmma_fence();
        PV::template issue<0, kTile.first_ksteps>(o_, p_, v, accumulate);
        ptx::wgmma_commit_group();
        PV::template issue<kTile.first_ksteps, kKsteps - kLastKsteps>(o_, p_, v, true);
        pass_turn();
        PV::template issue<kKsteps - kLastKsteps, kKsteps>(o_, p_, v, true);
        ptx::wgmma_commit_group();
    }

    // The tensor cores are taken in turn, so that one warpgroup's softmax runs under the others' products.
    __device__ __forceinline__ void take_turn() { take_turn_of(warpgroup_); }
    __device__ __forceinline__ void pass_turn() { pass_turn_of(warpgroup_); }
    static __device__ __forceinline__ void take_turn_of(int32_t warpgroup) {
        if constexpr (kTile.takes_turns) ptx::barrier_sync(turn_barrier(warpgroup), kTurnThreads);
    }
    static __device__ __forceinline__ void pass_turn_of(int32_t warpgroup) {
        if constexpr (kTile.takes_turns)
            ptx::barrier_arrive(turn_barrier(warpgroup + 1 == kTile.consumers ? 0 : warpgroup + 1), kTurnThreads);
    }

    __device__ __forceinline__ void free_queries() { shared_.q_ring.release(queries_.slot, query_tile_); }
    // A single buffer is freed as soon as the tile's last Q K^T has read it.
    __device__ __forceinline__ void free_single_queries(bool last_block) {
        if constexpr (kTile.query_buffers == 1)
            if (last_block) free_queries();
    }
    // After a tile's last read of its Work, by every thread for itself.
    __device__ __forceinline__ void free_work(int32_t slot) { ptx::mbarrier_arrive(shared_.work_ring.free[slot][0]); }

    // Of this warpgroup, in the tile that it is at.
    __device__ __forceinline__ const OwnWork& own_work() const {
        return shared_.own_work[work_slots_.slot][query_tile_];
    }
    __device__ __forceinline__ int32_t steps_before() const {
        return kTile.has_own_blocks() ? own_work().steps_before : 0;
    }
    __device__ __forceinline__ int32_t steps_after() const {
        return kTile.has_own_blocks() ? own_work().steps_after : 0;
    }

    // Waits for the next tile's Q. Work::computed.
    __device__ __forceinline__ uint32_t next_tile(BlockRange& blocks) {
        shared_.q_ring.wait_full(queries_, query_tile_);
        const Work& work = shared_.work[work_slots_.slot];
        const BlockRange& own = kTile.has_own_blocks() ? own_work().blocks : work.blocks;
        blocks.visit = {uniform(own.visit.begin), uniform(own.visit.end)};
        blocks.unmasked = {uniform(own.unmasked.begin), uniform(own.unmasked.end)};
        return uniform(work.computed);
    }

    // Factors that turn O into the output; writes the log-sum-exp.
    __device__ __forceinline__ RowScale finish_rows(const RowTotals& totals, int32_t slot) {
        const float sink = rows_in(slot).sink;
        constexpr auto kToBase2 = static_cast<float>(kLog2E);
        const RowScale scale{
            {softmax_.normaliser(totals, o_, 0, sink * kToBase2), softmax_.normaliser(totals, o_, 1, sink * kToBase2)}};
        if constexpr (kConfig.has_lse()) {
            // Of warpgroups that share rows, one writes.
            if (params_.lse != nullptr && (!kTile.shares_rows || warpgroup_ == 0)) {
                const float lse[2] = {softmax_.log_sum_exp(totals, 0, sink), softmax_.log_sum_exp(totals, 1, sink)};
                store_lse(params_, shared_.work[slot], rows_in(slot), ptx::lane_id(), lse);
            }
        }
        return scale;
    }

    // This warp's staging rows may be overwritten.
    __device__ __forceinline__ void await_staging() {
        if (ptx::elect_sync()) ptx::bulk_wait_group_read();
        __syncwarp();
    }

    // Panels of O from kFirst on to shared memory, as many as fit ...
    template <int32_t kFirst>
    __device__ __forceinline__ void stage(RowScale scale) {
        stage_panels<kConfig.dtype, kFirst, kTile.staged_out_panels()>(shared_.out[warpgroup_], warp_, ptx::lane_id(),
                                                                       o_, scale);
    }

    // ... and from there, then the others, to global memory.
    template <int32_t kFirst = 0>
    __device__ __forceinline__ void store(RowScale scale, int32_t slot) {
        store_panels<kTile.staged_out_panels()>(shared_.out[warpgroup_], warp_, ptx::lane_id(), maps_.out, params_,
                                                shared_.work[slot], rows_in(slot),
                                                first_column() + kFirst * kPanelColumns);
        if constexpr (kFirst + kTile.staged_out_panels() < kOutPanels) {
            await_staging();
            stage<kFirst + kTile.staged_out_panels()>(scale);
            store<kFirst + kTile.staged_out_panels()>(scale, slot);
        }
    }

    Shared<kConfig>& shared_;
    const ForwardMaps& maps_;
    const ForwardParams& params_;
    const int32_t warpgroup_, warp_;
    const int32_t query_tile_;  // which of the CTA's 64-row tiles of Q is this warpgroup's
    const uint32_t q_descriptor_, k_descriptor_, v_descriptor_;
    RingPosition<kTile.stages> keys_;    // of the next block
    RingPosition<kTile.stages> values_;  // of the block whose P is in p_
    RingPosition<kTile.query_buffers> queries_;
    RingPosition<kWorkSlots> work_slots_;
    RowSoftmax softmax_;
    bool caps_late_ = false;  // the tile's unmasked blocks take capped_step()
    float s_[QK::kScores];
    float o_[kTile.accumulators()];
    uint32_t p_[kKsteps][4];
};

}  // namespace foveal::sm90
