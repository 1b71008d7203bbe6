#include "sm90/forward/e4m3/plan.hpp"

#include <algorithm>
#include <sstream>

#include "sm90/device.hpp"
#include "sm90/forward/e4m3/support.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

DescaleOfHead descale_of(const Descale& descale) { return {nullptr, descale.stride.batch, descale.stride.head}; }

PreparedE4m3 prepared(const ForwardProblem& p, const cuda::DeviceTraits& traits) {
    PreparedE4m3 kernel{{p.out_dtype, e4m3_head_dim(p), p.wants_lse}, {}, {}};
    const ForwardVariant variant = p.wants_lse ? ForwardVariant::lse : ForwardVariant::plain;
    kernel.schedule = schedule_of(p, {order_tile(kernel.config.head_dim), variant, false}, traits);
    if (kernel.schedule.grid == 0) return kernel;
    kernel.params = {params_of(p, kernel.schedule), descale_of(p.q_descale), descale_of(p.k_descale),
                     descale_of(p.v_descale)};
    return kernel;
}

}  // namespace

Sm90E4m3Plan::Sm90E4m3Plan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits)
    : ForwardPlan(problem, FOVEAL_BACKEND_SM90, device), traits_(traits), kernel_(prepared(problem, traits)) {}

void Sm90E4m3Plan::launch(const ForwardPointers& pointers, void* stream) const {
    check_pointers(pointers);
    if (kernel_.schedule.grid > 0) launch_e4m3_forward(problem(), kernel_, device(), pointers, stream);
}

std::string Sm90E4m3Plan::describe() const {
    const ForwardTile walk = kernel_.config.walk();
    const int64_t heads = std::min<int64_t>(1 << kernel_.schedule.heads_log2, problem().heads_per_kv());
    std::ostringstream out;
    out << foveal::describe(problem()) << "kernel     sm90 forward over e4m3, writing " << name_of(kernel_.config.out)
        << ", d and d_v up to " << walk.head_dim << (kernel_.config.has_lse ? ", with log-sum-exp" : "") << '\n'
        << "tile       " << walk.rows() << " rows (" << walk.consumers << " warpgroups of 64 rows) x " << walk.keys
        << " keys, " << walk.stages << " stages; limited by registers: S 64, O and its product "
        << kernel_.config.accumulators() + 36 << ", P 16 of " << walk.consumer_registers << '\n'
        << "           rows of " << (heads == 1 ? "one head" : std::to_string(heads) + " heads")
        << "; V is transposed by " << kTransposers << " warps\n"
        << "grid       " << kernel_.schedule.grid << " CTAs of " << walk.threads() << " threads on " << traits_.sms
        << " SMs\n"
        << "shared     " << shared_bytes(kernel_.config) << " bytes a CTA\n"
        << "registers  " << walk.producer_registers << " a producer thread, " << walk.consumer_registers
        << " a consumer thread\n"
        << "workspace  " << workspace_bytes() << " bytes\n";
    return out.str();
}

std::unique_ptr<ForwardPlan> plan_e4m3_forward(const ForwardProblem& problem, int32_t device) {
    check_e4m3_supported(problem);
    return std::make_unique<Sm90E4m3Plan>(problem, device, traits_of(device));
}

}  // namespace foveal::sm90
