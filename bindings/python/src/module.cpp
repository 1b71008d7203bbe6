// The module foveal._foveal.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <string>

#include "arguments.hpp"
#include "documentation.hpp"
#include "errors.hpp"
#include "library.hpp"

namespace foveal::python {
namespace {

using namespace nb::literals;

// May foveal compute this problem? True or False, and why not.
struct Support {
    std::string reason;  // empty: yes
};

class Plan {
   public:
    Plan(const foveal_forward_args& args, int32_t device) : destroy_(library.plan_destroy) {
        check(library.plan_create(&args, device, &plan_));
        size_t needed = 0;
        check(library.plan_describe(plan_, nullptr, 0, &needed));
        text_.resize(needed);
        check(library.plan_describe(plan_, text_.data(), text_.size(), nullptr));
        text_.resize(needed - 1);
        workspace_bytes_ = library.plan_workspace_bytes(plan_);
    }
    ~Plan() { destroy_(plan_); }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    const std::string& text() const { return text_; }
    size_t workspace_bytes() const { return workspace_bytes_; }

   private:
    decltype(&foveal_plan_destroy) destroy_;
    foveal_plan* plan_ = nullptr;
    std::string text_;
    size_t workspace_bytes_ = 0;
};

nb::object forward(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                   const Options& options, nb::handle return_lse, nb::handle out) {
    const bool wants_lse = boolean(return_lse, "return_lse");
    ForwardArguments arguments(q, k, v, cu_seqlens_q, cu_seqlens_k, options, Form::tensor);
    arguments.refuse_gradients();
    arguments.set_backend({});
    const CurrentDevice guard = arguments.enter_device();
    arguments.set_results(out, wants_lse);
    arguments.launch();
    return arguments.result(wants_lse);
}

nb::object attention(nb::handle q, nb::handle k, nb::handle v, nb::handle scale, nb::handle causal, nb::handle window,
                     nb::handle align, nb::handle softcap, nb::handle chunk, nb::handle alibi_slopes, nb::handle sinks,
                     nb::handle bias, nb::handle mask, nb::handle seqused_q, nb::handle seqused_k,
                     nb::handle return_lse, nb::handle out) {
    return forward(
        q, k, v, {}, {},
        {scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k},
        return_lse, out);
}

nb::object attention_varlen(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                            nb::handle scale, nb::handle causal, nb::handle window, nb::handle align,
                            nb::handle softcap, nb::handle chunk, nb::handle alibi_slopes, nb::handle sinks,
                            nb::handle seqused_q, nb::handle seqused_k, nb::handle return_lse, nb::handle out) {
    for (const auto& [name, value] : {std::pair{"cu_seqlens_q", cu_seqlens_q}, {"cu_seqlens_k", cu_seqlens_k}})
        if (value.is_none()) raise_type_error(std::string(name) + " is None; attention_varlen needs it");
    return forward(q, k, v, cu_seqlens_q, cu_seqlens_k,
                   {scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, {}, {}, seqused_q, seqused_k},
                   return_lse, out);
}

// Of supports() and plan(), which take the arguments of either form.
std::unique_ptr<ForwardArguments> described(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q,
                                            nb::handle cu_seqlens_k, const Options& options, nb::handle return_lse,
                                            nb::handle backend) {
    auto arguments =
        std::make_unique<ForwardArguments>(q, k, v, cu_seqlens_q, cu_seqlens_k, options, Form::description);
    arguments->set_backend(backend);
    arguments->describe_results(boolean(return_lse, "return_lse"));
    return arguments;
}

Support supports(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                 nb::handle scale, nb::handle causal, nb::handle window, nb::handle align, nb::handle softcap,
                 nb::handle chunk, nb::handle alibi_slopes, nb::handle sinks, nb::handle bias, nb::handle mask,
                 nb::handle seqused_q, nb::handle seqused_k, nb::handle return_lse, nb::handle backend) {
    const auto arguments =
        described(q, k, v, cu_seqlens_q, cu_seqlens_k,
                  {scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k},
                  return_lse, backend);
    const foveal_status status = library.supports(&arguments->args());
    if (status == FOVEAL_OK) return {""};
    if (status == FOVEAL_UNSUPPORTED || status == FOVEAL_NO_DEVICE) return {library.last_error()};
    raise(status, library.last_error());
}

std::unique_ptr<Plan> plan(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                           nb::handle scale, nb::handle causal, nb::handle window, nb::handle align, nb::handle softcap,
                           nb::handle chunk, nb::handle alibi_slopes, nb::handle sinks, nb::handle bias,
                           nb::handle mask, nb::handle seqused_q, nb::handle seqused_k, nb::handle return_lse,
                           nb::handle backend) {
    const auto arguments =
        described(q, k, v, cu_seqlens_q, cu_seqlens_k,
                  {scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k},
                  return_lse, backend);
    return std::make_unique<Plan>(arguments->args(), arguments->cuda_device());
}

NB_MODULE(_foveal, module) {
    define_errors(module);
    define_host_buffer(module);

    module.def("attention", attention, "q"_a.none(), "k"_a.none(), "v"_a.none(), nb::kw_only(), "scale"_a = nb::none(),
               "causal"_a = false, "window"_a = nb::none(), "align"_a = "bottom_right", "softcap"_a = 0.0,
               "chunk"_a = 0, "alibi_slopes"_a = nb::none(), "sinks"_a = nb::none(), "bias"_a = nb::none(),
               "mask"_a = nb::none(), "seqused_q"_a = nb::none(), "seqused_k"_a = nb::none(), "return_lse"_a = false,
               "out"_a = nb::none(),
               nb::sig("def attention(q, k, v, *, scale=None, causal=False, window=(None, None), align='bottom_right', "
                       "softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, bias=None, mask=None, seqused_q=None, "
                       "seqused_k=None, return_lse=False, out=None)"),
               kAttentionDoc);

    module.def(
        "attention_varlen", attention_varlen, "q"_a.none(), "k"_a.none(), "v"_a.none(), "cu_seqlens_q"_a.none(),
        "cu_seqlens_k"_a.none(), nb::kw_only(), "scale"_a = nb::none(), "causal"_a = false, "window"_a = nb::none(),
        "align"_a = "bottom_right", "softcap"_a = 0.0, "chunk"_a = 0, "alibi_slopes"_a = nb::none(),
        "sinks"_a = nb::none(), "seqused_q"_a = nb::none(), "seqused_k"_a = nb::none(), "return_lse"_a = false,
        "out"_a = nb::none(),
        nb::sig("def attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, scale=None, causal=False, "
                "window=(None, None), align='bottom_right', softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, "
                "seqused_q=None, seqused_k=None, return_lse=False, out=None)"),
        kVarlenDoc);

    module.def("merge", merge, "outs"_a.none(), "lses"_a.none(), nb::kw_only(), "out"_a = nb::none(),
               "lse"_a = nb::none(), nb::sig("def merge(outs, lses, *, out=None, lse=None)"), kMergeDoc);

    nb::class_<Support>(module, "Support", "The answer of supports(): true or false, and the reason.")
        .def("__bool__", [](const Support& answer) { return answer.reason.empty(); })
        .def("__repr__",
             [](const Support& answer) {
                 return answer.reason.empty() ? "supported" : "not supported: " + answer.reason;
             })
        .def_ro("reason", &Support::reason, "Why not; empty if the problem is supported.");

    nb::class_<Plan>(module, "Plan", "Which kernel, tile, grid and order of work a problem gets; print it.")
        .def("__str__", &Plan::text)
        .def("__repr__", &Plan::text)
        .def_prop_ro("workspace_bytes", &Plan::workspace_bytes, "Bytes of device memory that a launch needs.");

    module.def(
        "supports", supports, "q"_a.none(), "k"_a.none(), "v"_a.none(), nb::kw_only(), "cu_seqlens_q"_a = nb::none(),
        "cu_seqlens_k"_a = nb::none(), "scale"_a = nb::none(), "causal"_a = false, "window"_a = nb::none(),
        "align"_a = "bottom_right", "softcap"_a = 0.0, "chunk"_a = 0, "alibi_slopes"_a = nb::none(),
        "sinks"_a = nb::none(), "bias"_a = nb::none(), "mask"_a = nb::none(), "seqused_q"_a = nb::none(),
        "seqused_k"_a = nb::none(), "return_lse"_a = false, "backend"_a = nb::none(),
        nb::sig("def supports(q, k, v, *, cu_seqlens_q=None, cu_seqlens_k=None, scale=None, causal=False, "
                "window=(None, None), align='bottom_right', softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, "
                "bias=None, mask=None, seqused_q=None, seqused_k=None, return_lse=False, backend=None)"),
        kSupportsDoc);

    module.def(
        "plan", plan, "q"_a.none(), "k"_a.none(), "v"_a.none(), nb::kw_only(), "cu_seqlens_q"_a = nb::none(),
        "cu_seqlens_k"_a = nb::none(), "scale"_a = nb::none(), "causal"_a = false, "window"_a = nb::none(),
        "align"_a = "bottom_right", "softcap"_a = 0.0, "chunk"_a = 0, "alibi_slopes"_a = nb::none(),
        "sinks"_a = nb::none(), "bias"_a = nb::none(), "mask"_a = nb::none(), "seqused_q"_a = nb::none(),
        "seqused_k"_a = nb::none(), "return_lse"_a = false, "backend"_a = nb::none(),
        nb::sig("def plan(q, k, v, *, cu_seqlens_q=None, cu_seqlens_k=None, scale=None, causal=False, "
                "window=(None, None), align='bottom_right', softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, "
                "bias=None, mask=None, seqused_q=None, seqused_k=None, return_lse=False, backend=None)"),
        kPlanDoc);

    module.def(
        "version", [] { return library.version(); }, "The version of libfoveal.");
    module.def(
        "backends",
        [] {
            nb::list names;
            names.append("cpu");
            if (library.backend_built(FOVEAL_BACKEND_SM90) != 0) names.append("sm90");
            return names;
        },
        "The backends of this build: \"cpu\", and \"sm90\" if it has the CUDA part.");
    module.def("use_library", use_library, "path"_a,
               "Calls the libfoveal at `path` from now on (\"\": the package's own); returns the one before. "
               "For measuring several builds side by side.");
}

}  // namespace
}  // namespace foveal::python
