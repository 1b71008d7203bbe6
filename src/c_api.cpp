// The C ABI: turns exceptions into statuses, and keeps each thread's last message and last few plans. It knows
// operations and backends, and no architecture.
#include "c_api.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <variant>

#include "backend/backends.hpp"
#include "backend/plan.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"
#include "foveal/foveal.h"
#include "foveal/types.hpp"
#include "problem/append.hpp"
#include "problem/backward.hpp"
#include "problem/cache_copy.hpp"
#include "problem/dropout_arguments.hpp"
#include "problem/forward.hpp"
#include "problem/merge.hpp"

struct foveal_plan {
    std::variant<std::unique_ptr<foveal::ForwardPlan>, std::unique_ptr<foveal::BackwardPlan>> plan;
};

namespace {

using foveal::Backend;
using foveal::BackwardPlan;
using foveal::Error;
using foveal::ForwardPlan;
using foveal::ForwardProblem;

thread_local std::string last_error;

using foveal::guarded;
using foveal::initialise;
using foveal::kFirstSize;
using foveal::Known;
using foveal::required;

}  // namespace

namespace foveal {

// The message itself may not fit the memory; then only the status tells.
foveal_status fail(foveal_status status, const char* message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return status;
}

template <>
constexpr size_t kFirstSize<foveal_forward_args> = offsetof(foveal_forward_args, mask) +
                                                   sizeof(foveal_forward_args::mask);
template <>
constexpr size_t kFirstSize<foveal_backward_args> = offsetof(foveal_backward_args, workspace_bytes) +
                                                    sizeof(foveal_backward_args::workspace_bytes);
template <>
constexpr size_t kFirstSize<foveal_merge_args> = offsetof(foveal_merge_args, lse) + sizeof(foveal_merge_args::lse);
template <>
constexpr size_t kFirstSize<foveal_append_args> = offsetof(foveal_append_args, v_scale) +
                                                  sizeof(foveal_append_args::v_scale);
template <>
constexpr size_t kFirstSize<foveal_copy_pages_args> = offsetof(foveal_copy_pages_args, pairs) +
                                                      sizeof(foveal_copy_pages_args::pairs);
template <>
constexpr size_t kFirstSize<foveal_gather_args> = offsetof(foveal_gather_args, page_indices) +
                                                  sizeof(foveal_gather_args::page_indices);

// Part of the ABI: a later field comes behind these, neither among them nor into padding that an older caller's sizeof
// counts.
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_forward_args> == 1088);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_backward_args> == 672);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_merge_args> == 192);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_append_args> == 1216);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_copy_pages_args> == 248);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_gather_args> == 728);
static_assert(kFirstSize<foveal_copy_pages_args> % alignof(foveal_copy_pages_args) == 0);
static_assert(kFirstSize<foveal_gather_args> % alignof(foveal_gather_args) == 0);
static_assert(kFirstSize<foveal_append_args> % alignof(foveal_append_args) == 0);
static_assert(kFirstSize<foveal_forward_args> % alignof(foveal_forward_args) == 0);
static_assert(kFirstSize<foveal_backward_args> % alignof(foveal_backward_args) == 0);
static_assert(kFirstSize<foveal_merge_args> % alignof(foveal_merge_args) == 0);

}  // namespace foveal

namespace {

Known<foveal_forward_args> known(const foveal_forward_args* args) {
    return {args, "foveal_forward_args_init", foveal_forward_args_init_sized};
}

// The same of two structures, one of which names the other.
class KnownBackward {
   public:
    explicit KnownBackward(const foveal_backward_args* args)
        : backward_(args, "foveal_backward_args_init", foveal_backward_args_init_sized),
          forward_(&required(backward_->forward, "args.forward"), "foveal_forward_args_init",
                   foveal_forward_args_init_sized),
          both_(*backward_) {
        both_.forward = &*forward_;
    }
    const foveal_backward_args& operator*() const { return both_; }
    const foveal_backward_args* operator->() const { return &both_; }

   private:
    Known<foveal_backward_args> backward_;
    Known<foveal_forward_args> forward_;
    foveal_backward_args both_;
};

KnownBackward known(const foveal_backward_args* args) { return KnownBackward(args); }

Known<foveal_merge_args> known(const foveal_merge_args* args) {
    return {args, "foveal_merge_args_init", foveal_merge_args_init_sized};
}

Known<foveal_append_args> known(const foveal_append_args* args) {
    return {args, "foveal_append_args_init", foveal_append_args_init_sized};
}

Known<foveal_copy_pages_args> known(const foveal_copy_pages_args* args) {
    return {args, "foveal_copy_pages_args_init", foveal_copy_pages_args_init_sized};
}

Known<foveal_gather_args> known(const foveal_gather_args* args) {
    return {args, "foveal_gather_args_init", foveal_gather_args_init_sized};
}

}  // namespace

void foveal::complete(const foveal_forward_args* given, foveal_forward_args* to, size_t size) {
    const auto all = known(given);
    std::memcpy(static_cast<void*>(to), &*all, size);
    to->struct_size = static_cast<uint32_t>(size);
}

void foveal::complete(const foveal_backward_args* given, foveal_backward_args* to, size_t size) {
    const Known<foveal_backward_args> all(given, "foveal_backward_args_init", foveal_backward_args_init_sized);
    std::memcpy(static_cast<void*>(to), &*all, size);
    to->struct_size = static_cast<uint32_t>(size);
}

namespace {

std::unique_ptr<ForwardPlan> make_plan(const ForwardProblem& problem, const Backend& backend, int32_t device) {
    return backend.plan_forward(problem, device);
}
std::unique_ptr<BackwardPlan> make_plan(const foveal::BackwardProblem& problem, const Backend& backend,
                                        int32_t device) {
    return backend.plan_backward(problem, device);
}

// The last plans of an operation of this thread, so that a repeated call does not plan again.
template <class Plan>
class PlanCache {
   public:
    const Plan& find_or_make(const typename Plan::Problem& problem, const Backend& backend, int32_t device) {
        for (const auto& plan : plans_)
            if (plan && plan->problem() == problem && plan->backend() == backend.id && plan->device() == device)
                return *plan;
        std::unique_ptr<Plan>& oldest = plans_[next_];
        oldest = make_plan(problem, backend, device);
        next_ = (next_ + 1) % plans_.size();
        return *oldest;
    }

   private:
    std::array<std::unique_ptr<Plan>, 8> plans_{};
    size_t next_ = 0;
};

void check_supported(const ForwardProblem& problem, const Backend& backend) { backend.check_supported(problem); }
void check_supported(const foveal::BackwardProblem& problem, const Backend& backend) {
    backend.check_backward_supported(problem);
}

const foveal_forward_args& forward_of(const foveal_forward_args& args) { return args; }
const foveal_forward_args& forward_of(const foveal_backward_args& args) { return *args.forward; }

// A backend that the caller did not ask for may be what is wrong: then the message names who did.
template <typename Body>
void naming_the_environment(foveal_backend asked, Body&& body) {
    try {
        body();
    } catch (const Error& error) {
        const std::string note = foveal::environment_note(asked);
        if (note.empty()) throw;
        throw Error(error.status(), error.what() + note);
    }
}

// A forward or a backward call.
template <class Plan, class Args>
void run(const Args& args, void* stream) {
    thread_local PlanCache<Plan> cache;
    const auto problem = foveal::validate(args);
    const auto pointers = foveal::pointers_of(args);
    const foveal_forward_args& forward = forward_of(args);
    naming_the_environment(forward.backend, [&] {
        const Backend& backend = foveal::resolve_backend(forward.backend, forward.q.data);
        check_supported(problem, backend);
        cache.find_or_make(problem, backend, backend.device_of(stream)).launch(pointers, stream);
    });
}

// foveal_copy_pages and foveal_gather.
template <class Args>
void copy_cache(const Args& args, void* stream) {
    const foveal::CacheCopy copy = foveal::validate(args);
    const foveal_tensor& cache = args.k_cache.rank != 0 ? args.k_cache : args.v_cache;
    naming_the_environment(args.backend,
                           [&] { foveal::resolve_backend(args.backend, cache.data).copy_cache(copy, stream); });
}

template <class Args>
void require_supported(const Args& args) {
    const auto problem = foveal::validate(args);
    // What the CPU backend supports, AUTO does: it supports all that others do.
    const foveal_backend asked = forward_of(args).backend;
    check_supported(problem, foveal::backend_of(asked == FOVEAL_BACKEND_AUTO ? FOVEAL_BACKEND_CPU : asked));
}

template <class Args>
void create_plan(const Args& args, int32_t device, foveal_plan** plan) {
    const auto problem = foveal::validate(args);
    const Backend& backend = foveal::backend_of(forward_of(args).backend);
    if (device < -1)
        throw Error(FOVEAL_INVALID_ARGUMENT,
                    "device is " + std::to_string(device) + "; it must be -1 or a CUDA device");
    foveal_plan*& result = required(plan, "plan");
    result = new foveal_plan{make_plan(problem, backend, device)};
}

template <class Plan, class Args>
void launch(const foveal_plan& kept, const Args& args, void* stream) {
    const auto* const held = std::get_if<std::unique_ptr<Plan>>(&kept.plan);
    if (held == nullptr)
        throw Error(FOVEAL_INVALID_ARGUMENT,
                    "the plan was made for the other direction: foveal_plan_launch() takes "
                    "foveal_plan_create()'s, foveal_backward_plan_launch() those of "
                    "foveal_backward_plan_create()");
    const Plan& plan = **held;
    const auto problem = foveal::validate(args);
    if (problem != plan.problem())
        throw Error(FOVEAL_INVALID_ARGUMENT,
                    "args describe another problem than the plan was made for; the plan's:\n" + plan.describe());
    const foveal_backend asked = forward_of(args).backend;
    if (asked != FOVEAL_BACKEND_AUTO && asked != plan.backend())
        throw Error(FOVEAL_INVALID_ARGUMENT, "args.backend is " + std::to_string(asked) +
                                                 " but the plan was made for backend " +
                                                 std::to_string(plan.backend()));
    const auto pointers = foveal::pointers_of(args);
    const int32_t device = foveal::require_built(foveal::backend_of(plan.backend())).device_of(stream);
    if (plan.device() != device)
        throw Error(FOVEAL_INVALID_ARGUMENT, "the plan was made for device " + std::to_string(plan.device()) +
                                                 " but the stream belongs to device " + std::to_string(device));
    plan.launch(pointers, stream);
}

}  // namespace

extern "C" {

void foveal_forward_args_init_sized(foveal_forward_args* args, size_t size) {
    foveal_forward_args defaults{};
    defaults.scale = std::numeric_limits<float>::quiet_NaN();
    defaults.alignment = FOVEAL_BOTTOM_RIGHT;
    defaults.window_left = FOVEAL_UNLIMITED;
    defaults.window_right = FOVEAL_UNLIMITED;
    initialise(args, size, defaults);
}

foveal_status foveal_forward(const foveal_forward_args* args, void* stream) {
    return guarded([&] { run<ForwardPlan>(*known(args), stream); });
}

foveal_status foveal_supports(const foveal_forward_args* args) {
    return guarded([&] { require_supported(*known(args)); });
}

foveal_status foveal_plan_create(const foveal_forward_args* args, int32_t device, foveal_plan** plan) {
    return guarded([&] { create_plan(*known(args), device, plan); });
}

void foveal_plan_destroy(foveal_plan* plan) { delete plan; }

foveal_status foveal_plan_describe(const foveal_plan* plan, char* text, size_t size, size_t* needed) {
    return guarded([&] {
        foveal::copy_text(std::visit([](const auto& held) { return held->describe(); }, required(plan, "plan").plan),
                          text, size, needed);
    });
}

size_t foveal_plan_workspace_bytes(const foveal_plan* plan) {
    if (plan == nullptr) return 0;
    return static_cast<size_t>(std::visit([](const auto& held) { return held->workspace_bytes(); }, plan->plan));
}

foveal_status foveal_plan_launch(const foveal_plan* plan, const foveal_forward_args* args, void* stream) {
    return guarded([&] { launch<ForwardPlan>(required(plan, "plan"), *known(args), stream); });
}

void foveal_backward_args_init_sized(foveal_backward_args* args, size_t size) { initialise(args, size); }

foveal_status foveal_backward(const foveal_backward_args* args, void* stream) {
    return guarded([&] { run<BackwardPlan>(*known(args), stream); });
}

foveal_status foveal_backward_supports(const foveal_backward_args* args) {
    return guarded([&] { require_supported(*known(args)); });
}

foveal_status foveal_backward_plan_create(const foveal_backward_args* args, int32_t device, foveal_plan** plan) {
    return guarded([&] { create_plan(*known(args), device, plan); });
}

foveal_status foveal_backward_plan_launch(const foveal_plan* plan, const foveal_backward_args* args, void* stream) {
    return guarded([&] { launch<BackwardPlan>(required(plan, "plan"), *known(args), stream); });
}

void foveal_merge_args_init_sized(foveal_merge_args* args, size_t size) { initialise(args, size); }

foveal_status foveal_merge(const foveal_merge_args* args, void* stream) {
    return guarded([&] {
        const auto given = known(args);
        const foveal::Merge merge = foveal::validate(*given);
        naming_the_environment(
            given->backend, [&] { foveal::resolve_backend(given->backend, given->outs[0].data).merge(merge, stream); });
    });
}

void foveal_append_args_init_sized(foveal_append_args* args, size_t size) { initialise(args, size); }

foveal_status foveal_append(const foveal_append_args* args, void* stream) {
    return guarded([&] {
        const auto given = known(args);
        const foveal::Append append = foveal::validate(*given);
        const foveal_tensor& rows = given->k.rank != 0 ? given->k : given->v.rank != 0 ? given->v : given->q;
        naming_the_environment(given->backend,
                               [&] { foveal::resolve_backend(given->backend, rows.data).append(append, stream); });
    });
}

void foveal_copy_pages_args_init_sized(foveal_copy_pages_args* args, size_t size) { initialise(args, size); }

foveal_status foveal_copy_pages(const foveal_copy_pages_args* args, void* stream) {
    return guarded([&] { copy_cache(*known(args), stream); });
}

void foveal_gather_args_init_sized(foveal_gather_args* args, size_t size) { initialise(args, size); }

foveal_status foveal_gather(const foveal_gather_args* args, void* stream) {
    return guarded([&] { copy_cache(*known(args), stream); });
}

foveal_status foveal_dropout_mask(int64_t b, int64_t h_q, int64_t s_q, int64_t s_k, float dropout_p,
                                  const uint64_t* dropout_state, uint8_t* mask) {
    return guarded([&] { foveal::fill_dropout_mask(b, h_q, s_q, s_k, dropout_p, dropout_state, mask); });
}

foveal_status foveal_set_num_threads(int32_t threads) {
    return guarded([&] { foveal::cpu::set_thread_count(threads); });
}

void foveal_set_thread_runner(foveal_thread_runner runner, void* context) {
    foveal::cpu::set_thread_runner(runner, context);
}

int32_t foveal_get_num_threads(void) {
    int32_t threads = -1;
    guarded([&] { threads = foveal::cpu::thread_count(); });
    return threads;
}

const char* foveal_last_error(void) { return last_error.c_str(); }

const char* foveal_status_name(foveal_status status) {
    switch (status) {
        case FOVEAL_OK:
            return "FOVEAL_OK";
        case FOVEAL_INVALID_ARGUMENT:
            return "FOVEAL_INVALID_ARGUMENT";
        case FOVEAL_UNSUPPORTED:
            return "FOVEAL_UNSUPPORTED";
        case FOVEAL_NO_DEVICE:
            return "FOVEAL_NO_DEVICE";
        case FOVEAL_CUDA_ERROR:
            return "FOVEAL_CUDA_ERROR";
        case FOVEAL_OUT_OF_MEMORY:
            return "FOVEAL_OUT_OF_MEMORY";
        case FOVEAL_INTERNAL_ERROR:
            return "FOVEAL_INTERNAL_ERROR";
        default:
            return "unknown foveal_status";
    }
}

#define FOVEAL_TEXT_OF(x) #x
#define FOVEAL_TEXT(x) FOVEAL_TEXT_OF(x)
const char* foveal_version(void) {
    return FOVEAL_TEXT(FOVEAL_VERSION_MAJOR) "." FOVEAL_TEXT(FOVEAL_VERSION_MINOR) "." FOVEAL_TEXT(
        FOVEAL_VERSION_PATCH);
}

int32_t foveal_backend_built(foveal_backend backend) { return foveal::backend_built(backend) ? 1 : 0; }

}  // extern "C"
