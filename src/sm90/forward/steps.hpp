// The five steps that a consumer warpgroup's work consists of, each a schedule of its own: what is issued to the tensor
// cores, what runs under it, and when a buffer is waited for and released. The numbers are those of the kernel's
// schedule (kernel.cuh).
//
//     first_scores   the first block's scores, with no output to run beside them
//     step           one block inside a tile
//     capped_step    the same under softcap alone
//     boundary       a tile's first block, beside the last output of the tile before
//     last_output    a tile's last output, with no scores to run beside it
//
// `Self` derives from this class and provides what the steps call: the kernel's Consumer, and the consumers that
// tests/sm90/rings_test.cpp plays through on the host. The steps are five bodies and not one with conditions: a wgmma's
// accumulators must not cross a branch, and one body for all was measured to be slower.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/tile/ring_position.hpp"

// Instantiated by the kernel for the device, and by tests for the host.
#if defined(__CUDACC__)
#define FOVEAL_CONSUMER __device__ __forceinline__
#else
#define FOVEAL_CONSUMER inline
#endif

namespace foveal::sm90 {

template <class Self, ForwardTile kTile>
class Steps {
   protected:
    // One block inside a tile, the i-th of blocks.visit.
    FOVEAL_CONSUMER void step(BlockRange& blocks, int32_t i) {
        const int32_t v_slot = values_.slot;
        self().fetch_bias(blocks, i);
        scores_beside_output(i > blocks.visit.begin + 1, i + 1 == blocks.visit.end);
        self().take_exponents(blocks, i);
        const auto before = self().totals();
        typename Self::Exponentials early;
        self().first_exponentials(early);
        wait_next_keys(i + 1 < blocks.visit.end);
        finish_output(v_slot);
        if (self().any_of_warp(self().template last_exponentials<false>(early))) self().rescale(blocks, before);
        self().drop(blocks, i);
    }

    // The same of an unmasked block under softcap alone: its scores are capped while the exponentials run.
    FOVEAL_CONSUMER void capped_step(BlockRange& blocks, int32_t i) {
        const int32_t v_slot = values_.slot;
        scores_beside_output(i > blocks.visit.begin + 1, i + 1 == blocks.visit.end);
        const auto before = self().totals();
        typename Self::Capped exponents(self());
        typename Self::CappedProbabilities early;
        self().first_capped(exponents, early);
        wait_next_keys(i + 1 < blocks.visit.end);
        finish_output(v_slot);
        self().last_capped(blocks, before, exponents, early);
    }

    // 9: the first block of a tile beside the last output of the one in slot `finished`, which is rounded and staged
    // while the exponentials run. The K block is known to be there.
    FOVEAL_CONSUMER void boundary(BlockRange& blocks, int32_t finished, bool accumulate) {
        const int32_t v_slot = values_.slot;
        self().fetch_bias(blocks, blocks.visit.begin);
        scores_beside_output(accumulate, blocks.visit.size() <= 1);
        const auto ended = self().totals();
        typename Self::Scale scale;
        if constexpr (!kTile.sums_in_product) scale = self().finish_rows(ended, finished);
        self().start_rows(blocks);
        typename Self::Exponentials early;
        self().first_exponentials(early);
        wait_next_keys(blocks.visit.size() > 1);
        self().wait_staging();
        finish_output(v_slot);
        if constexpr (kTile.sums_in_product) scale = self().finish_rows(ended, finished);
        self().stage(scale);
        self().template last_exponentials<true>(early);
        self().store(scale, finished);
        self().free_work(finished);
        self().drop(blocks, blocks.visit.begin);
    }

    // The first block of a tile after nothing, or after a tile that was passed over.
    FOVEAL_CONSUMER void first_scores(BlockRange& blocks) {
        const int32_t k_slot = keys_.slot;
        self().fetch_bias(blocks, blocks.visit.begin);
        self().wait_keys(keys_);
        self().take_turn();
        self().issue_scores(k_slot);
        self().pass_turn();
        values_ = keys_;
        keys_.advance();
        self().finish_scores();
        self().release_keys(k_slot);
        free_single_queries(blocks.visit.size() <= 1);
        self().start_rows(blocks);
        self().first_probabilities();
        self().drop(blocks, blocks.visit.begin);
        if (blocks.visit.size() > 1) self().wait_keys(keys_);  // wait_next_keys() costs d 512 other instructions
    }

    // The last output of the tile in slot `finished`, where the next tile is passed over or there is none.
    FOVEAL_CONSUMER void last_output(int32_t finished, bool accumulate) {
        self().wait_values(values_);
        self().take_last_turn();
        issue_output(accumulate);
        self().wait_staging();
        finish_output(values_.slot);
        const auto scale = self().finish_rows(self().totals(), finished);
        self().stage(scale);
        self().store(scale, finished);
        self().free_work(finished);
    }

    FOVEAL_CONSUMER Self& self() { return static_cast<Self&>(*this); }

    RingPosition<kTile.stages> keys_;    // of the next block
    RingPosition<kTile.stages> values_;  // of the block whose P is there, and whose output is still to come
    RingPosition<kTile.query_buffers> queries_;
    RingPosition<kWorkSlots> works_;

   private:
    // 4 to 6: both products issued, and the scores there; the output is still under way. The K block is known to be
    // there. last: block of its tile.
    FOVEAL_CONSUMER void scores_beside_output(bool accumulate, bool last) {
        const int32_t k_slot = keys_.slot;
        self().wait_values(values_);
        self().take_turn();
        self().issue_scores(k_slot);
        issue_output(accumulate);
        values_ = keys_;
        keys_.advance();
        self().finish_scores_beside_output();
        self().release_keys(k_slot);
        free_single_queries(last);
    }

    FOVEAL_CONSUMER void issue_output(bool accumulate) {
        self().issue_most_of_output(values_.slot, accumulate);
        self().pass_turn();
        self().issue_rest_of_output(values_.slot);
    }

    // 8: the output of a block is there.
    FOVEAL_CONSUMER void finish_output(int32_t v_slot) {
        self().finish_products();
        self().release_values(v_slot);
    }

    // The next step needs them. Amid the exponentials it costs no time, and without a branch there ptxas (13.0) moves
    // those before it behind the wait for P V: 1.001 instead of 0.931 of the best peer's time at b1 s16384 (H200,
    // 2026-11-23).
    FOVEAL_CONSUMER void wait_next_keys(bool more_blocks) {
        if (more_blocks) self().wait_keys(keys_);
    }

    // A single buffer of Q is freed as soon as the tile's last Q K^T has read it.
    FOVEAL_CONSUMER void free_single_queries(bool last_block) {
        if constexpr (kTile.query_buffers == 1)
            if (last_block) self().free_queries(queries_.slot);
    }
};

}  // namespace foveal::sm90
