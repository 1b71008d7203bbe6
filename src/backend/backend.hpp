// What a backend offers to c_api.cpp: one row of functions. The rows are listed in backends.cpp.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/plan.hpp"
#include "foveal/foveal.h"
#include "problem/append.hpp"
#include "problem/backward.hpp"
#include "problem/cache_copy.hpp"
#include "problem/forward.hpp"
#include "problem/merge.hpp"

namespace foveal {

struct Backend {
    foveal_backend id;
    const char* name;
    bool is_built;  // false: it validates and plans, but this build has no kernels for it

    // Is this memory of a device of its own? Of the CPU's: never, it takes what no other backend claims.
    bool (*holds)(const void* pointer);
    // The device that `stream` belongs to; -1: the backend has none. Throws Error where `stream` is none of its own.
    int32_t (*device_of)(void* stream);

    // Each throws Error(UNSUPPORTED), naming the argument, unless the backend can do it exactly. No device is asked.
    void (*check_supported)(const ForwardProblem& problem);
    void (*check_backward_supported)(const BackwardProblem& problem);
    // device -1: a generic device of the backend. Throws as check_supported() and its like do.
    std::unique_ptr<ForwardPlan> (*plan_forward)(const ForwardProblem& problem, int32_t device);
    std::unique_ptr<BackwardPlan> (*plan_backward)(const BackwardProblem& problem, int32_t device);
    // Compute.
    void (*merge)(const Merge& merge, void* stream);
    void (*append)(const Append& append, void* stream);
    void (*copy_cache)(const CacheCopy& copy, void* stream);
};

}  // namespace foveal
