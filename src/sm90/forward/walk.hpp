// The way of a consumer warpgroup through the tiles of its CTA: which step (steps.hpp) comes when, and how it stays in
// step with the others, with whom it shares the rings of K and V and the turns at the tensor cores, where they need
// blocks that it does not (step 10 of the kernel's schedule). tests/sm90/rings_test.cpp plays it through on the host.
#pragma once

#include <cstdint>

#include "sm90/forward/steps.hpp"

namespace foveal::sm90 {

template <class Self, ForwardTile kTile>
class Walk : protected Steps<Self, kTile> {
    using Base = Steps<Self, kTile>;

   public:
    FOVEAL_CONSUMER void run() {
        BlockRange blocks;
        uint32_t computed = next_tile(blocks);
        if (computed == 0) return;
        constexpr int32_t kLast = kTile.consumers - 1;
        if (self().warpgroup() == kLast) self().pass_turn_of(kLast);  // warpgroup 0 begins
        bool has_begun = false;
        while (computed != 0) {
            if (self().is_own(computed)) {
                computed = compute_tiles(blocks);
                has_begun = true;
            } else {
                pass_over_tile(has_begun);
                computed = next_tile(blocks);
                has_begun = false;
            }
        }
        if (!has_begun) {  // the others' of the last output
            self().take_turn();
            self().pass_turn();
        }
        if (self().warpgroup() == 0) self().take_turn_of(0);  // the one that the last warpgroup passed on
        self().finish_stores();
    }

   protected:
    using Base::keys_;
    using Base::queries_;
    using Base::self;
    using Base::values_;
    using Base::works_;

   private:
    // From this tile to the last, or to one that this warpgroup passes over: that one's `computed`. Its first K block
    // has then been passed over, and its first turn used for the last output.
    FOVEAL_CONSUMER uint32_t compute_tiles(BlockRange& blocks) {
        const RingPosition<kTile.stages> start = keys_;
        skip_keys(steps_before());
        this->first_scores(blocks);
        skip_values(start, steps_before());
        for (;;) {
            for (int32_t i = blocks.visit.begin + 1; i < blocks.visit.end; ++i)
                // (In this order of the branches; in the other nvcc 13.0 swaps two comparisons.)
                if (!self().caps_late() || !blocks.unmasked.contains(self().block_of(blocks, i)))
                    this->step(blocks, i);
                else
                    this->capped_step(blocks, i);
            if constexpr (kTile.query_buffers > 1) self().free_queries(queries_.slot);
            const bool accumulate = blocks.visit.size() > 1;
            const int32_t finished = works_.slot;
            RingPosition<kTile.stages> next_values = values_;
            next_values.advance();
            int32_t skipped = steps_after();
            skip_keys(skipped);
            queries_.advance();
            works_.advance();
            const uint32_t computed = next_tile(blocks);
            if (!self().is_own(computed)) {
                if (computed != 0) pass_over_keys();
                this->last_output(finished, accumulate);
                skip_values(next_values, skipped);
                return computed;
            }
            skip_keys(steps_before());
            skipped += steps_before();
            self().wait_keys(keys_);
            this->boundary(blocks, finished, accumulate);
            skip_values(next_values, skipped);
        }
    }

    // A tile in which only other warpgroups have rows: in step with them, since they share the rings and the turns.
    // has_begun: by compute_tiles().
    FOVEAL_CONSUMER void pass_over_tile(bool has_begun) {
        const int32_t count = self().blocks_of_tile();
        for (int32_t i = 0; i < count; ++i, keys_.advance()) {
            if (i > 0 || !has_begun) {
                pass_over_keys();
                self().take_turn();
                self().pass_turn();
            }
            self().wait_values(keys_);
            self().release_values(keys_.slot);
            self().converge();
        }
        self().free_queries(queries_.slot);
        self().free_work(works_.slot);
        queries_.advance();
        works_.advance();
    }
    FOVEAL_CONSUMER void pass_over_keys() {
        self().wait_keys(keys_);
        self().release_keys(keys_.slot);
        self().converge();
    }

    // Blocks of the tile that only other warpgroups need. They are waited for, so that this warpgroup is never further
    // ahead than the ring is long.
    FOVEAL_CONSUMER void skip_keys(int32_t count) {
        if constexpr (kTile.has_own_blocks())
            for (; count > 0; --count, keys_.advance()) {
                self().wait_keys(keys_);
                self().take_turn();
                self().pass_turn();
                self().release_keys(keys_.slot);
                self().converge();
            }
    }
    FOVEAL_CONSUMER void skip_values(RingPosition<kTile.stages> from, int32_t count) {
        if constexpr (kTile.has_own_blocks())
            for (; count > 0; --count, from.advance()) {
                self().wait_values(from);
                self().release_values(from.slot);
                self().converge();
            }
    }

    // Blocks of the tile before and after those of this warpgroup.
    FOVEAL_CONSUMER int32_t steps_before() { return kTile.has_own_blocks() ? self().own_work().steps_before : 0; }
    FOVEAL_CONSUMER int32_t steps_after() { return kTile.has_own_blocks() ? self().own_work().steps_after : 0; }

    // Waits for the next tile's Q, with which the tile comes. Work::computed.
    FOVEAL_CONSUMER uint32_t next_tile(BlockRange& blocks) {
        self().wait_queries(queries_);
        return self().read_tile(blocks);
    }
};

}  // namespace foveal::sm90
