// The decode's plan on sm90: which kernel, how many CTAs share the work, the workspace, and the parameters that the
// launch hands over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/support.hpp"

namespace foveal::sm90 {

// Counts that a workspace has room for, whatever the shapes: then one serves calls of all shapes, one after the other,
// since no call leaves nodes where another looks for zeros.
inline constexpr int64_t kMostCounts = 65536;

// Where in a workspace what lies, in bytes. The counts, its control words, come first: they are zero between launches.
struct DecodeWorkspace {
    int64_t arrived = 0, nodes = 0;
    int64_t bytes = 0;
};

// How one kernel computes the problem.
struct DecodeSchedule {
    DecodeChoice choice;
    int32_t heads = 0;   // of K, times the parts that their columns are cut into
    int32_t counts = 0;  // of sequences, or parts of them, that pieces are counted of (sequence.hpp)
    Teams teams{};
    int32_t split_grid = 0, whole_grid = 0;  // CTAs with a workspace and without; 0: nothing to compute
    DecodeWorkspace workspace;
    int32_t box_rows = 0;  // that the copy engine moves at once; 0: threads copy row by row

    bool can_split() const { return workspace.bytes > 0; }
};

DecodeSchedule decode_schedule_of(const ForwardProblem& problem, DecodeChoice choice, const cuda::DeviceTraits& traits);

// All but the pointers.
DecodeParams decode_params_of(const ForwardProblem& problem, const DecodeSchedule& schedule);

// A kernel, ready to be launched as soon as the pointers are known.
struct PreparedDecode {
    DecodeSchedule schedule;
    DecodeParams params;

    const DecodeTileEntry& entry() const { return kDecodeTiles[schedule.choice.tile_index]; }
    const DecodeTile& tile() const { return entry().tile; }
    int32_t grid(bool splits) const { return splits ? schedule.split_grid : schedule.whole_grid; }
};

class Sm90DecodePlan final : public ForwardPlan {
   public:
    Sm90DecodePlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    int64_t workspace_bytes() const override { return kernel_.schedule.workspace.bytes; }
    void launch(const ForwardPointers& pointers, void* stream) const override;

    const PreparedDecode& kernel() const { return kernel_; }

   private:
    const cuda::DeviceTraits traits_;
    const PreparedDecode kernel_;
};

// Of a problem that decodes. device -1: a generic H200.
std::unique_ptr<ForwardPlan> plan_decode(const ForwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
