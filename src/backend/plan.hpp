// A plan: every decision about a problem that does not depend on where its data lie. Making one asks no device for
// anything but its traits, and works the same without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "foveal/foveal.h"
#include "problem/backward.hpp"
#include "problem/forward.hpp"

namespace foveal {

// OfProblem and Pointers are those of an operation.
template <class OfProblem, class Pointers>
class Plan {
   public:
    using Problem = OfProblem;

    Plan(const Problem& problem, foveal_backend backend, int32_t device)
        : problem_(problem), backend_(backend), device_(device) {}
    virtual ~Plan() = default;
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    const Problem& problem() const { return problem_; }
    foveal_backend backend() const { return backend_; }
    int32_t device() const { return device_; }  // -1: none in particular

    // Several lines, for people.
    virtual std::string describe() const = 0;
    // In memory of the device. A forward call computes without it all the same, only slower; a backward call needs it.
    virtual int64_t workspace_bytes() const { return 0; }
    // Enqueues on `stream`, whose device must be device(). Throws Error.
    virtual void launch(const Pointers& pointers, void* stream) const = 0;

   private:
    const Problem problem_;
    const foveal_backend backend_;
    const int32_t device_;
};

using ForwardPlan = Plan<ForwardProblem, ForwardPointers>;
using BackwardPlan = Plan<BackwardProblem, BackwardPointers>;

// The first lines of every plan's description: what is asked.
std::string describe(const ForwardProblem& problem);
std::string describe(const BackwardProblem& problem);

}  // namespace foveal
