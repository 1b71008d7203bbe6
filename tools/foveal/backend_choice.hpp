// --backend cpu|sm90|auto.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "foveal/foveal.h"

namespace foveal_tool {

// Adds --backend. name: "" where it is not given: then the environment variable FOVEAL_BACKEND counts, as it does for
// the library.
void add_backend_option(CLI::App& command, std::string& name);

struct BackendChoice {
    foveal_backend backend = FOVEAL_BACKEND_CPU;  // cpu or sm90
    std::string description;                      // "sm90 on NVIDIA H200", "cpu (auto: no CUDA-capable device ...)"
};

// name: as of add_backend_option(). auto: sm90 if there is a Hopper device, else cpu. Throws Failure if sm90 is asked
// for and cannot run, UsageError if FOVEAL_BACKEND is no backend.
BackendChoice choose_backend(const std::string& name);

// The same, but sm90 without a device is fine: for what only plans.
BackendChoice choose_backend_to_plan(const std::string& name);

}  // namespace foveal_tool
