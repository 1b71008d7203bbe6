// The functions of the C ABI that the extension calls: those of the libfoveal beside it, until a benchmark or an
// experiment puts another build in its place.
#pragma once

#include <string>

#include "foveal/foveal.h"

namespace foveal::python {

struct Library {
    std::string path;  // empty: the one beside the extension
    decltype(&foveal_forward_args_init) forward_args_init = nullptr;
    decltype(&foveal_forward) forward = nullptr;
    decltype(&foveal_supports) supports = nullptr;
    decltype(&foveal_plan_create) plan_create = nullptr;
    decltype(&foveal_plan_destroy) plan_destroy = nullptr;
    decltype(&foveal_plan_describe) plan_describe = nullptr;
    decltype(&foveal_plan_workspace_bytes) plan_workspace_bytes = nullptr;
    decltype(&foveal_merge_args_init) merge_args_init = nullptr;
    decltype(&foveal_merge) merge = nullptr;
    decltype(&foveal_last_error) last_error = nullptr;
    decltype(&foveal_version) version = nullptr;
    decltype(&foveal_backend_built) backend_built = nullptr;
};

extern Library library;

// Loads the build at `path` ("": the one beside the extension) and calls it from now on; returns the path of the one
// before. A build stays loaded.
std::string use_library(const std::string& path);

}  // namespace foveal::python
