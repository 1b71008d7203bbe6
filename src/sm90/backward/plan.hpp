// The backward's plan on sm90: which kernels, their grids, and where in the workspace what lies.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/backward/score_sums.hpp"
#include "sm90/backward/tiles.hpp"

namespace foveal::sm90 {

// Offsets in bytes, from the workspace's begin.
struct WorkspaceLayout {
    int64_t dq_sums = 0, neg_lse = 0, neg_delta = 0, sink_parts = 0, arrivals = 0, tasks = 0, counts = 0;
    int64_t bias_parts = 0, slope_parts = 0;
    int64_t bytes = 0;
};

struct PreparedBackward {
    int32_t tile_index = 0;
    BackwardVariant variant{};
    int32_t slots = 0;  // of a head (sequences.hpp)
    WorkspaceLayout workspace;
    // CTAs; 0: nothing to do. Where heads are wide there are two kernels in place of one, or three.
    int32_t prepare_grid = 0, grid = 0, keys_grid = 0, queries_grid = 0, finish_grid = 0;
    std::array<int32_t, kWidestGradients> widest_grids{};
    // Of the bias and of the slopes, each summed by a launch of its own.
    BiasSums bias_sums;
    int32_t bias_grid = 0, slopes_grid = 0, add_grid = 0;

    bool has_products() const {
        return grid + keys_grid + queries_grid + widest_grids[0] + widest_grids[1] + widest_grids[2] > 0;
    }
    const BackwardTile& tile() const { return kBackwardTiles[tile_index]; }
};

class Sm90BackwardPlan final : public BackwardPlan {
   public:
    Sm90BackwardPlan(const BackwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    int64_t workspace_bytes() const override { return prepared_.workspace.bytes; }
    void launch(const BackwardPointers& pointers, void* stream) const override;

   private:
    const PreparedBackward prepared_;
};

// device -1: a generic H200.
std::unique_ptr<BackwardPlan> plan_backward(const BackwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
