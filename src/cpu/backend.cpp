#include "cpu/backend.hpp"

#include "cpu/append.hpp"
#include "cpu/backward.hpp"
#include "cpu/cache_copy.hpp"
#include "cpu/forward.hpp"
#include "cpu/merge.hpp"

namespace foveal::cpu {
namespace {

constexpr int32_t kNoDevice = -1;

bool holds(const void*) { return false; }

int32_t device_of(void* stream) {
    if (stream != nullptr) throw Error(FOVEAL_INVALID_ARGUMENT, "stream is not NULL; the cpu backend has no streams");
    return kNoDevice;
}

// Else the softmax scales distances from the maximum, or a cap bounds what is scaled.
void check_supported(const ForwardProblem& p) {
    if (p.has_alibi || p.has_bias) require_scale(p, "the cpu backend, beside alibi_slopes or bias,");
}

class CpuForwardPlan : public ForwardPlan {
   public:
    explicit CpuForwardPlan(const ForwardProblem& problem) : ForwardPlan(problem, FOVEAL_BACKEND_CPU, kNoDevice) {}

    std::string describe() const override {
        return foveal::describe(problem()) + "kernel     cpu forward\nworkspace  0 bytes\n";
    }
    void launch(const ForwardPointers& pointers, void* stream) const override {
        device_of(stream);
        forward(problem(), pointers);
    }
};

std::unique_ptr<ForwardPlan> plan_forward(const ForwardProblem& problem, int32_t) {
    check_supported(problem);
    return std::make_unique<CpuForwardPlan>(problem);
}

void check_backward_supported(const BackwardProblem& p) {
    require_differentiable(p);
    check_supported(p.forward);
}

class CpuBackwardPlan : public BackwardPlan {
   public:
    explicit CpuBackwardPlan(const BackwardProblem& problem) : BackwardPlan(problem, FOVEAL_BACKEND_CPU, kNoDevice) {}

    std::string describe() const override {
        return foveal::describe(problem()) + "kernel     cpu backward\nworkspace  0 bytes\n";
    }
    void launch(const BackwardPointers& pointers, void* stream) const override {
        device_of(stream);
        backward(problem(), pointers);
    }
};

std::unique_ptr<BackwardPlan> plan_backward(const BackwardProblem& problem, int32_t) {
    check_backward_supported(problem);
    return std::make_unique<CpuBackwardPlan>(problem);
}

void run_merge(const Merge& parts, void* stream) {
    device_of(stream);
    merge(parts);
}

void run_append(const Append& rows, void* stream) {
    device_of(stream);
    append(rows);
}

void run_cache_copy(const CacheCopy& copy, void* stream) {
    device_of(stream);
    copy_cache(copy);
}

}  // namespace

constinit const Backend kBackend{.id = FOVEAL_BACKEND_CPU,
                                 .name = "cpu",
                                 .is_built = true,
                                 .holds = holds,
                                 .device_of = device_of,
                                 .check_supported = check_supported,
                                 .check_backward_supported = check_backward_supported,
                                 .plan_forward = plan_forward,
                                 .plan_backward = plan_backward,
                                 .merge = run_merge,
                                 .append = run_append,
                                 .copy_cache = run_cache_copy};

}  // namespace foveal::cpu
