// The forward's plan on sm90: which kernel, in which order its tiles go, and the parameters that the launch hands over.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/forward/order.hpp"
#include "sm90/forward/params.hpp"
#include "sm90/forward/support.hpp"

namespace foveal::sm90 {

// How one kernel computes the problem.
struct ForwardSchedule {
    ForwardChoice choice;
    int32_t grid = 0;  // CTAs; 0: nothing to compute
    bool last_rows_first = false;
    OrderChoice order;
    // Tiles hold rows of so many query heads, as a power of two (schedule.hpp). Varlen: those of sequences that have at
    // least so many tiles less then; 0: packed tiles visit fewer K/V blocks.
    int32_t heads_log2 = 0;
    int32_t least_saved_tiles = 1;
    // A warpgroup without rows in a tile passes over it if it has at least so many K/V blocks; else it computes as if
    // it had some.
    int32_t passed_over_blocks = 1;
    // Of a varlen q: sequences of no more rows are left to the decode kernel. 0: none are.
    int32_t decoded_rows = 0;
};

ForwardSchedule schedule_of(const ForwardProblem& problem, ForwardChoice choice, const cuda::DeviceTraits& traits);

// All but the pointers. Of a bias and a mask, `in_vectors` holds if their data is aligned.
ForwardParams params_of(const ForwardProblem& problem, const ForwardSchedule& schedule);

// A kernel, ready to be launched as soon as the pointers are known.
struct PreparedForward {
    ForwardSchedule schedule;
    ForwardParams params;

    const ForwardTileEntry& entry() const { return kForwardTiles[schedule.choice.tile_index]; }
    const ForwardTile& tile() const { return entry().tile; }
};

PreparedForward prepare_forward(const ForwardProblem& problem, const ForwardSchedule& schedule);

// The lines "kernel" to "order" of a plan's description.
void describe_forward(std::ostream& out, const ForwardProblem& problem, const PreparedForward& kernel, int32_t sms);

class Sm90ForwardPlan final : public ForwardPlan {
   public:
    Sm90ForwardPlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    void launch(const ForwardPointers& pointers, void* stream) const override;

    const cuda::DeviceTraits& traits() const { return traits_; }
    const PreparedForward& kernel() const { return kernel_; }

   private:
    const cuda::DeviceTraits traits_;
    const PreparedForward kernel_;
};

// device -1: a generic H200.
std::unique_ptr<ForwardPlan> plan_forward(const ForwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
