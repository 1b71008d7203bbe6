#include "problem/backward.hpp"

#include <string>

#include "problem/argument.hpp"
#include "problem/dropout_arguments.hpp"
#include "problem/forward_inputs.hpp"
#include "problem/overlap.hpp"
#include "problem/workspace.hpp"

namespace foveal {
namespace {

// A tensor that has the shape of one of the forward call's.
struct Twin {
    const char* name;
    foveal_tensor foveal_backward_args::*tensor;
    const char* of_name;
    foveal_tensor foveal_forward_args::*of;
    bool is_written;
    bool may_be_f32 = false;

    Argument in(const foveal_backward_args& args) const { return {name, args.*tensor}; }
};
constexpr Twin kTwins[] = {
    {"dout", &foveal_backward_args::dout, "out", &foveal_forward_args::out, false},
    {"dlse", &foveal_backward_args::dlse, "lse", &foveal_forward_args::lse, false},
    {"dq", &foveal_backward_args::dq, "q", &foveal_forward_args::q, true, true},
    {"dk", &foveal_backward_args::dk, "k", &foveal_forward_args::k, true, true},
    {"dv", &foveal_backward_args::dv, "v", &foveal_forward_args::v, true, true},
    {"dsinks", &foveal_backward_args::dsinks, "sinks", &foveal_forward_args::sinks, true},
    {"dbias", &foveal_backward_args::dbias, "bias", &foveal_forward_args::bias, true, true},
    {"dalibi_slopes", &foveal_backward_args::dalibi_slopes, "alibi_slopes", &foveal_forward_args::alibi_slopes, true}};

void check_twin(const Twin& twin, const foveal_backward_args& args) {
    const Argument a = twin.in(args);
    if (!a.present()) return;
    const Argument of{twin.of_name, args.forward->*twin.of};
    if (!of.present()) refuse(a.text() + " is present but " + of.text() + " is absent");
    const std::string same_rank = of.text() + "'s rank";
    require_rank(a, of.tensor.rank, same_rank.c_str());
    for (int i = 0; i < of.tensor.rank; ++i) require_dim(a, i, of.tensor.shape[i], of.dim(i).c_str());
    const std::string same_dtype = of.text() + (twin.may_be_f32 ? "'s dtype (or f32)" : "'s dtype");
    if (!twin.may_be_f32 || a.dtype() != DType::f32) require_dtype(a, of.dtype(), same_dtype.c_str());
    check_strided(a);
    if (twin.is_written) require_no_overlap(a);
}

void check_presence(const foveal_backward_args& args) {
    if (args.reserved != 0) refuse("reserved is " + std::to_string(args.reserved) + "; it must be 0");
    for (const Twin& twin : kTwins) require_known_rank(twin.in(args));
    if (args.forward->lse.rank == 0) refuse("forward->lse is absent; the gradient needs the log-sum-exp");
    if (args.dout.rank == 0) refuse("dout is absent; it is what the gradient is computed from");
    for (const Twin& twin : kTwins)
        if (twin.is_written && twin.in(args).present()) return;
    refuse("dq, dk, dv, dsinks, dbias and dalibi_slopes are absent; no gradient is asked");
}

void check_overlaps(const foveal_backward_args& args) {
    const foveal_tensor workspace = bytes_of_workspace(args.workspace, args.workspace_bytes);
    const foveal_tensor state = tensor_of_dropout_state(args.forward->dropout_state);
    const auto keep_apart = [&](const Argument& written, size_t number) {
        const Placed own{written};
        for (const ForwardInput& input : kForwardInputs)
            require_apart(own, Placed{{input.name, args.forward->*input.tensor}});
        require_apart(own, Placed{{"dropout_state", state}});
        require_apart(own, Placed{{"out", args.forward->out}});
        require_apart(own, Placed{{"lse", args.forward->lse}});
        for (size_t other = 0; other < std::size(kTwins); ++other)
            if (!kTwins[other].is_written || other < number) require_apart(own, Placed{kTwins[other].in(args)});
    };
    for (size_t number = 0; number < std::size(kTwins); ++number)
        if (kTwins[number].is_written && kTwins[number].in(args).present()) keep_apart(kTwins[number].in(args), number);
    if (workspace.rank != 0) keep_apart({"workspace", workspace}, std::size(kTwins));
}

}  // namespace

BackwardProblem validate(const foveal_backward_args& args) {
    BackwardProblem p;
    p.forward = validate(*args.forward);
    if (p.forward.keys_dtype == DType::e4m3) refuse("forward->k.dtype is e4m3; gradients are of f32, bf16 and f16");
    if (p.forward.out_dtype != p.forward.dtype)
        refuse("forward->out.dtype is " + name_of(p.forward.out_dtype) + "; for gradients it is q's, " +
               name_of(p.forward.dtype));
    check_presence(args);
    for (const Twin& twin : kTwins) check_twin(twin, args);
    p.has_dlse = args.dlse.rank != 0;
    p.wants_dq = args.dq.rank != 0;
    p.wants_dk = args.dk.rank != 0;
    p.wants_dv = args.dv.rank != 0;
    p.wants_dsinks = args.dsinks.rank != 0;
    p.wants_dbias = args.dbias.rank != 0;
    p.wants_dalibi = args.dalibi_slopes.rank != 0;
    p.dout = strides_of(args.dout);
    if (p.has_dlse) p.dlse = lse_strides_of(args.dlse);
    if (p.wants_dq) p.dq_dtype = dtype_of(args.dq), p.dq = strides_of(args.dq);
    if (p.wants_dk) p.dk_dtype = dtype_of(args.dk), p.dk = strides_of(args.dk);
    if (p.wants_dv) p.dv_dtype = dtype_of(args.dv), p.dv = strides_of(args.dv);
    if (p.wants_dsinks) p.dsinks = head_strides_of(args.dsinks);
    if (p.wants_dbias) p.dbias_dtype = dtype_of(args.dbias), p.dbias = score_strides_of(args.dbias);
    if (p.wants_dalibi) p.dalibi = head_strides_of(args.dalibi_slopes);
    return p;
}

BackwardPointers pointers_of(const foveal_backward_args& args) {
    const auto read = [&](const char* name, const foveal_tensor& t) { return data_of({name, t}); };
    const auto written = [](const char* name, const foveal_tensor& t) {
        void* const data = const_cast<void*>(data_of({name, t}));
        return has_elements(t) ? data : nullptr;
    };
    BackwardPointers p;
    p.forward = pointers_of(*args.forward);
    p.forward.workspace = nullptr;
    p.forward.workspace_bytes = 0;
    p.dout = read("dout", args.dout);
    p.dlse = static_cast<const float*>(read("dlse", args.dlse));
    p.dq = written("dq", args.dq);
    p.dk = written("dk", args.dk);
    p.dv = written("dv", args.dv);
    p.dsinks = static_cast<float*>(written("dsinks", args.dsinks));
    p.dbias = written("dbias", args.dbias);
    p.dalibi_slopes = static_cast<float*>(written("dalibi_slopes", args.dalibi_slopes));
    check_workspace(args.workspace, args.workspace_bytes);
    p.workspace = args.workspace;
    p.workspace_bytes = args.workspace_bytes;
    check_overlaps(args);
    return p;
}

void require_differentiable(const BackwardProblem& problem) {
    if (problem.forward.keys != KeyForm::paged) return;
    const char* const name = problem.forward.lists_pages ? "page_indices" : "block_table";
    throw Error(
        FOVEAL_UNSUPPORTED,
        std::string(name) + " is present; there is no gradient of keys in pages (pass k and v dense or varlen)");
}

void require_workspace(const BackwardPointers& pointers, int64_t needed_bytes) {
    if (pointers.workspace_bytes >= static_cast<uint64_t>(needed_bytes)) return;
    refuse("workspace_bytes is " + std::to_string(pointers.workspace_bytes) + "; the gradient of this problem needs " +
           std::to_string(needed_bytes) + " (foveal_plan_workspace_bytes())");
}

}  // namespace foveal
