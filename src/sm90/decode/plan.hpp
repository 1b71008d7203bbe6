// The decode's plan on sm90: which kernel, how many CTAs share the work, the workspace, and the parameters that the
// launch hands over.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/support.hpp"

namespace foveal::sm90 {

// The counts, a workspace's control words, come first and are zero between launches: so many whatever the problem, so
// that one workspace serves calls of all shapes, one after the other. The nodes are behind them. Kernels that one call
// launches run side by side, with counts and nodes of their own.
inline constexpr int32_t kDecodeCounts = 1024, kMostDecodes = 2;
inline constexpr int64_t kDecodeControlBytes = int64_t{kMostDecodes} * kDecodeCounts * 4;

// How one kernel computes the problem.
struct DecodeSchedule {
    DecodeChoice choice;
    int32_t heads = 0;  // of K, times the parts that their columns are cut into
    Teams teams{};
    int32_t split_grid = 0, whole_grid = 0;  // CTAs with a workspace and without; 0: nothing to compute
    int64_t node_bytes = 0;
    int32_t box_rows = 0;  // that the copy engine moves at once; 0: threads copy row by row
};

DecodeSchedule decode_schedule_of(const ForwardProblem& problem, const DecodeChoice& choice,
                                  const cuda::DeviceTraits& traits);

// All but the pointers.
DecodeParams decode_params_of(const ForwardProblem& problem, const DecodeSchedule& schedule);

// A kernel, ready to be launched as soon as the pointers are known.
struct PreparedDecode {
    DecodeSchedule schedule;
    DecodeParams params;
    // In the workspace, in bytes.
    int64_t counts = 0, nodes = kDecodeControlBytes;

    const DecodeTileEntry& entry() const { return kDecodeTiles[schedule.choice.tile_index]; }
    DecodeTile tile() const { return schedule.choice.tile(); }
    int64_t workspace_end() const { return schedule.node_bytes > 0 ? nodes + schedule.node_bytes : 0; }
    int32_t grid(bool splits) const { return splits ? schedule.split_grid : schedule.whole_grid; }
};

PreparedDecode prepare_decode(const ForwardProblem& problem, const DecodeChoice& choice,
                              const cuda::DeviceTraits& traits);

// Throws Error(INVALID_ARGUMENT) if there is a workspace of fewer bytes than `needed`.
void check_workspace(const ForwardPointers& pointers, int64_t needed);

// The lines "kernel" to "shared" of a plan's description.
void describe_decode(std::ostream& out, const ForwardProblem& problem, const PreparedDecode& kernel, int32_t sms);

// Of a dense q.
class Sm90DecodePlan final : public ForwardPlan {
   public:
    Sm90DecodePlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    int64_t workspace_bytes() const override { return kernel_.workspace_end(); }
    void launch(const ForwardPointers& pointers, void* stream) const override;

    const PreparedDecode& kernel() const { return kernel_; }

   private:
    const cuda::DeviceTraits traits_;
    const PreparedDecode kernel_;
};

// Of a problem that decodes. device -1: a generic H200.
std::unique_ptr<ForwardPlan> plan_decode(const ForwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
