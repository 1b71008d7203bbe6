#include "library.hpp"

#include <dlfcn.h>

#include <map>

#include "errors.hpp"

namespace foveal::python {
namespace {

Library beside() {
    return {"",
            foveal_forward_args_init_sized,
            foveal_forward,
            foveal_supports,
            foveal_plan_create,
            foveal_plan_destroy,
            foveal_plan_describe,
            foveal_plan_workspace_bytes,
            foveal_merge_args_init_sized,
            foveal_merge,
            foveal_append_args_init_sized,
            foveal_append,
            foveal_backward_args_init_sized,
            foveal_backward,
            foveal_backward_supports,
            foveal_backward_plan_create,
            foveal_copy_pages_args_init_sized,
            foveal_copy_pages,
            foveal_gather_args_init_sized,
            foveal_gather,
            foveal_last_error,
            foveal_version,
            foveal_backend_built,
            foveal_set_num_threads,
            foveal_get_num_threads,
            foveal_set_thread_runner,
            foveal_dropout_mask};
}

Library load(const std::string& path) {
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) refuse("library cannot be loaded: " + std::string(dlerror()));
    Library loaded{path};
    const auto find = [&](auto& function, const char* name, bool required = true) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
        if (required && function == nullptr) refuse("library " + path + " has no " + name);
    };
    find(loaded.forward_args_init_sized, "foveal_forward_args_init_sized", false);
    if (loaded.forward_args_init_sized == nullptr) find(loaded.forward_args_init, "foveal_forward_args_init");
    find(loaded.forward, "foveal_forward");
    find(loaded.supports, "foveal_supports");
    find(loaded.plan_create, "foveal_plan_create");
    find(loaded.plan_destroy, "foveal_plan_destroy");
    find(loaded.plan_describe, "foveal_plan_describe");
    find(loaded.plan_workspace_bytes, "foveal_plan_workspace_bytes");
    find(loaded.merge, "foveal_merge", false);  // builds before 2026-11-24 have no merge
    find(loaded.merge_args_init_sized, "foveal_merge_args_init_sized", false);
    if (loaded.merge != nullptr && loaded.merge_args_init_sized == nullptr)
        find(loaded.merge_args_init, "foveal_merge_args_init");
    find(loaded.append, "foveal_append", false);  // nor those before 2026-11-29 append
    find(loaded.append_args_init_sized, "foveal_append_args_init_sized", loaded.append != nullptr);
    find(loaded.backward, "foveal_backward", false);  // nor have gradients
    find(loaded.backward_args_init_sized, "foveal_backward_args_init_sized", loaded.backward != nullptr);
    find(loaded.backward_supports, "foveal_backward_supports", loaded.backward != nullptr);
    find(loaded.backward_plan_create, "foveal_backward_plan_create", loaded.backward != nullptr);
    find(loaded.copy_pages, "foveal_copy_pages", false);
    find(loaded.copy_pages_args_init_sized, "foveal_copy_pages_args_init_sized", loaded.copy_pages != nullptr);
    find(loaded.gather, "foveal_gather", false);
    find(loaded.gather_args_init_sized, "foveal_gather_args_init_sized", loaded.gather != nullptr);
    find(loaded.last_error, "foveal_last_error");
    find(loaded.version, "foveal_version");
    find(loaded.backend_built, "foveal_backend_built");
    find(loaded.set_num_threads, "foveal_set_num_threads", false);
    find(loaded.get_num_threads, "foveal_get_num_threads", false);
    find(loaded.set_thread_runner, "foveal_set_thread_runner", false);
    find(loaded.dropout_mask, "foveal_dropout_mask", false);
    return loaded;
}

template <class Args>
void init_args(Args& args, void (*sized)(Args*, size_t), void (*of_older_builds)(Args*)) {
    if (sized != nullptr) return sized(&args, sizeof args);
    args = {};
    of_older_builds(&args);
}

}  // namespace

Library library = beside();

namespace {

void* openmp = nullptr;

void run_in_openmp(void (*work)(void*), void* job, int32_t threads, void* gomp_parallel) {
    using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
    reinterpret_cast<Parallel>(gomp_parallel)(work, job, static_cast<unsigned>(threads), 0);
}

void set_runner() {
    if (library.set_thread_runner != nullptr && openmp != nullptr) library.set_thread_runner(run_in_openmp, openmp);
}

}  // namespace

void Library::init(foveal_forward_args& args) const { init_args(args, forward_args_init_sized, forward_args_init); }

void Library::init(foveal_merge_args& args) const { init_args(args, merge_args_init_sized, merge_args_init); }

void Library::init(foveal_append_args& args) const { append_args_init_sized(&args, sizeof args); }

void Library::init(foveal_backward_args& args) const { backward_args_init_sized(&args, sizeof args); }

void Library::init(foveal_copy_pages_args& args) const { copy_pages_args_init_sized(&args, sizeof args); }

void Library::init(foveal_gather_args& args) const { gather_args_init_sized(&args, sizeof args); }

std::string use_library(const std::string& path) {
    static std::map<std::string, Library> builds{{"", beside()}};
    auto build = builds.find(path);
    if (build == builds.end()) build = builds.emplace(path, load(path)).first;
    std::string before = library.path;
    library = build->second;
    set_runner();
    return before;
}

void use_openmp(void* gomp_parallel) {
    openmp = gomp_parallel;
    set_runner();
}

}  // namespace foveal::python
