// The functions of the C ABI that the extension calls: those of the libfoveal beside it, until a benchmark or an
// experiment puts another build in its place.
#pragma once

#include <string>

#include "foveal/foveal.h"

namespace foveal::python {

struct Library {
    std::string path;  // empty: the one beside the extension
    decltype(&foveal_forward_args_init_sized) forward_args_init_sized = nullptr;
    decltype(&foveal_forward) forward = nullptr;
    decltype(&foveal_supports) supports = nullptr;
    decltype(&foveal_plan_create) plan_create = nullptr;
    decltype(&foveal_plan_destroy) plan_destroy = nullptr;
    decltype(&foveal_plan_describe) plan_describe = nullptr;
    decltype(&foveal_plan_workspace_bytes) plan_workspace_bytes = nullptr;
    decltype(&foveal_merge_args_init_sized) merge_args_init_sized = nullptr;
    decltype(&foveal_merge) merge = nullptr;
    decltype(&foveal_append_args_init_sized) append_args_init_sized = nullptr;
    decltype(&foveal_append) append = nullptr;
    decltype(&foveal_backward_args_init_sized) backward_args_init_sized =
        nullptr;  // null in older builds, as its fellows
    decltype(&foveal_backward) backward = nullptr;
    decltype(&foveal_backward_supports) backward_supports = nullptr;
    decltype(&foveal_backward_plan_create) backward_plan_create = nullptr;
    decltype(&foveal_copy_pages_args_init_sized) copy_pages_args_init_sized = nullptr;
    decltype(&foveal_copy_pages) copy_pages = nullptr;
    decltype(&foveal_gather_args_init_sized) gather_args_init_sized = nullptr;
    decltype(&foveal_gather) gather = nullptr;
    decltype(&foveal_last_error) last_error = nullptr;
    decltype(&foveal_version) version = nullptr;
    decltype(&foveal_backend_built) backend_built = nullptr;
    decltype(&foveal_set_num_threads) set_num_threads = nullptr;  // null in builds before 2026-11-29, as its fellow
    decltype(&foveal_get_num_threads) get_num_threads = nullptr;
    decltype(&foveal_set_thread_runner) set_thread_runner = nullptr;  // null in builds before 2026-11-30
    decltype(&foveal_dropout_mask) dropout_mask = nullptr;            // null in builds before 2026-11-30
    // Of builds before 2026-11-29, which have no _sized ones; their structures are no longer than today's.
    void (*forward_args_init)(foveal_forward_args*) = nullptr;
    void (*merge_args_init)(foveal_merge_args*) = nullptr;

    void init(foveal_forward_args& args) const;
    void init(foveal_merge_args& args) const;
    void init(foveal_append_args& args) const;
    void init(foveal_backward_args& args) const;
    void init(foveal_copy_pages_args& args) const;
    void init(foveal_gather_args& args) const;
};

extern Library library;

// Loads the build at `path` ("": the one beside the extension) and calls it from now on; returns the path of the one
// before. A build stays loaded.
std::string use_library(const std::string& path);

// Calls on the CPU run on the threads of the OpenMP whose function GOMP_parallel this is, of every build.
void use_openmp(void* gomp_parallel);

}  // namespace foveal::python
