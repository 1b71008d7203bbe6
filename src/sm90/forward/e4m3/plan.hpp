// The plan of a forward over e4m3 on sm90.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/forward/e4m3/params.hpp"
#include "sm90/forward/e4m3/tiles.hpp"
#include "sm90/forward/plan.hpp"

namespace foveal::sm90 {

// A kernel, ready to be launched as soon as the pointers are known.
struct PreparedE4m3 {
    E4m3Config config;
    ForwardSchedule schedule;  // of the tile that has as many rows and keys (tiles.hpp, order_tile())
    E4m3Params params;
};

class Sm90E4m3Plan final : public ForwardPlan {
   public:
    Sm90E4m3Plan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    void launch(const ForwardPointers& pointers, void* stream) const override;

    const PreparedE4m3& kernel() const { return kernel_; }

   private:
    const cuda::DeviceTraits traits_;
    const PreparedE4m3 kernel_;
};

// device -1: a generic H200.
std::unique_ptr<ForwardPlan> plan_e4m3_forward(const ForwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
