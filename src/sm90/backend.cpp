#include "sm90/backend.hpp"

#include "sm90/backward/plan.hpp"
#include "sm90/backward/support.hpp"
#include "sm90/decode/plan.hpp"
#include "sm90/decode/support.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/e4m3/plan.hpp"
#include "sm90/forward/e4m3/support.hpp"
#include "sm90/forward/plan.hpp"
#include "sm90/forward/support.hpp"
#include "sm90/tensors.hpp"
#include "sm90/varlen/plan.hpp"

namespace foveal::sm90 {
namespace {

void check(const ForwardProblem& problem) {
    if (problem.dtype == DType::e4m3) return check_e4m3_supported(problem);
    if (decodes(problem)) return check_decode(problem, decode_choice_of(problem));
    check_supported(problem);
    for (const DecodeChoice& choice : decode_choices_of_varlen(problem)) check_decode(problem, choice);
}

std::unique_ptr<ForwardPlan> plan(const ForwardProblem& problem, int32_t device) {
    check(problem);
    if (problem.dtype == DType::e4m3) return plan_e4m3_forward(problem, device);
    if (decodes(problem)) return plan_decode(problem, device);
    return decode_choices_of_varlen(problem).empty() ? plan_forward(problem, device) : plan_varlen(problem, device);
}

}  // namespace

constinit const Backend kBackend{.id = FOVEAL_BACKEND_SM90,
                                 .name = "sm90",
                                 .is_built = FOVEAL_HAS_CUDA != 0,
                                 .holds = holds,
                                 .device_of = device_of,
                                 .check_supported = check,
                                 .check_backward_supported = check_backward_supported,
                                 .plan_forward = plan,
                                 .plan_backward = plan_backward,
                                 .merge = launch_merge,
                                 .append = launch_append,
                                 .copy_cache = launch_cache_copy};

}  // namespace foveal::sm90
