// foveal.attention_backward.
#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "arguments.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

// The gradients, in the order in which they are asked for and returned.
enum Gradient { kDq, kDk, kDv, kDsinks, kDbias, kDslopes, kGradients };

// A gradient that is asked: a new tensor with the shape of what it is the gradient of.
class NewGradient {
   public:
    NewGradient(const Borrowed& q, PyObject* q_object, const foveal_tensor& like, const char* name, bool zeros) {
        foveal_tensor view = like;
        view.data = nullptr;
        pack_strides(view);
        const bool dtype_of_q = view.dtype == q.view.dtype;
        object_ = new_tensor(q.type, q_object, q.device, view, dtype_of_q);
        if (zeros) fill(q.type, object_, 0);
        borrowed_.emplace(object_.ptr(), name);
    }
    const foveal_tensor& view() const { return borrowed_->view; }
    nb::object returned(const TensorType& type) const { return returned_form(type, object_); }

   private:
    nb::object object_;
    std::optional<Borrowed> borrowed_;
};

class BackwardCall {
   public:
    // wanted: kGradients booleans.
    BackwardCall(ForwardArguments& forward, nb::handle dout, nb::handle dlse, nb::tuple wanted, Form form)
        : forward_(forward), dout_(dout.ptr(), "dout", form) {
        const Borrowed& q = forward.q();
        require_same_device(dout_, "dout", q, "q");
        library.init(args_);
        args_.forward = &forward.args();
        args_.dout = dout_.view;
        if (!dlse.is_none()) {
            dlse_.emplace(dlse.ptr(), "dlse", form);
            require_same_device(*dlse_, "dlse", q, "q");
            args_.dlse = dlse_->view;
        }
        for (size_t i = 0; i < kGradients; ++i) wanted_[i] = boolean(nb::object(wanted[i]), "wanted");
    }

    void make_results() {
        const foveal_forward_args& of = forward_.args();
        const bool unused_q = of.seqused_q.rank != 0, unused_k = of.seqused_k.rank != 0;
        make(kDq, args_.dq, of.q, "dq", unused_q);
        make(kDk, args_.dk, of.k, "dk", unused_k);
        make(kDv, args_.dv, of.v, "dv", unused_k);
        make(kDsinks, args_.dsinks, of.sinks, "dsinks", false);
        make(kDbias, args_.dbias, of.bias, "dbias", false);
        make(kDslopes, args_.dalibi_slopes, of.alibi_slopes, "dalibi_slopes", false);
        make_workspace();
    }

    void launch() {
        launch_for(forward_.q(), [&](void* stream) { return library.backward(&args_, stream); });
    }

    // None for what is not asked, or has no forward tensor.
    nb::object results() const {
        nb::list all;
        for (const std::optional<NewGradient>& gradient : gradients_)
            all.append(gradient ? gradient->returned(forward_.q().type) : nb::none());
        return nb::tuple(all);
    }

   private:
    void make(Gradient which, foveal_tensor& slot, const foveal_tensor& like, const char* name, bool zeros) {
        if (!wanted_[which] || like.rank == 0) return;
        gradients_[which].emplace(forward_.q(), forward_.q_object(), like, name, zeros);
        slot = gradients_[which]->view();
    }

    void make_workspace() {
        foveal_plan* plan = nullptr;
        check(library.backward_plan_create(&args_, forward_.cuda_device(), &plan));
        const std::unique_ptr<foveal_plan, decltype(library.plan_destroy)> owner(plan, library.plan_destroy);
        const auto words = static_cast<int64_t>((library.plan_workspace_bytes(plan) + 3) / 4);
        if (words == 0) return;
        foveal_tensor view{};
        view.dtype = FOVEAL_F32;
        view.rank = 1;
        view.shape[0] = words;
        workspace_.emplace(forward_.q(), forward_.q_object(), view, "workspace", true);
        args_.workspace = workspace_->view().data;
        args_.workspace_bytes = static_cast<uint64_t>(words) * 4;
    }

    ForwardArguments& forward_;
    Borrowed dout_;
    std::optional<Borrowed> dlse_;
    std::array<bool, kGradients> wanted_{};
    std::array<std::optional<NewGradient>, kGradients> gradients_;
    std::optional<NewGradient> workspace_;
    foveal_backward_args args_;
};

void refuse_negative(std::initializer_list<std::pair<const char*, nb::handle>> tensors) {
    for (const auto& [name, tensor] : tensors)
        if (!tensor.is_none() && tensor_type_of(tensor.ptr()).framework == Framework::torch)
            torch::refuse_negative(tensor.ptr(), name);
}

}  // namespace

nb::object backward(PyObject* const* arguments, const Options& options, bool dispatched) {
    const nb::handle dout = arguments[0], dlse = arguments[1], out = arguments[2], lse = arguments[3],
                     wanted = arguments[4];
    if (library.backward == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no gradients");
    const Form form = dispatched ? Form::dispatched : Form::tensor;
    constexpr size_t kCount = 30;
    const auto through_dispatcher = [&] { return torch::through_dispatcher("_attention_backward", arguments, kCount); };
    try {
        ForwardArguments forward(arguments[5], arguments[6], arguments[7], arguments[8], arguments[9], options, form);
        if (!dispatched && forward.course(nb::none()) != Course::plain) return through_dispatcher();
        forward.set_backend({});
        const CurrentDevice guard = forward.enter_device();
        forward.borrow_results(out, lse);
        BackwardCall call(forward, dout, dlse, nb::borrow<nb::tuple>(wanted), form);
        if (!dispatched) refuse_negative({{"dout", dout}, {"dlse", dlse}, {"out", out}, {"lse", lse}});
        call.make_results();
        call.launch();
        return call.results();
    } catch (const Unreadable& tensor) {
        if (!dispatched && tensor_type_of(arguments[5]).framework == Framework::torch) return through_dispatcher();
        raise(FOVEAL_UNSUPPORTED, tensor.message);
    }
}

nb::object backward_supports(PyObject* const* arguments, const Options& options) {
    ForwardArguments forward(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], options,
                             Form::description);
    forward.set_backend({});
    forward.describe_results(true);
    return nb::str(why_no_gradient(forward.args()).c_str());
}

std::string why_no_gradient(const foveal_forward_args& of) {
    if (library.backward == nullptr) return "this build of libfoveal has no gradients";
    foveal_backward_args args;
    library.init(args);
    args.forward = &of;
    args.dout = of.out;
    args.dq = of.q;
    args.dk = of.k;
    args.dv = of.v;
    args.dsinks = of.sinks;
    args.dbias = of.bias;
    args.dalibi_slopes = of.alibi_slopes;
    for (foveal_tensor* const gradient : {&args.dq, &args.dk, &args.dv, &args.dsinks, &args.dbias, &args.dalibi_slopes})
        pack_strides(*gradient);
    const foveal_status status = library.backward_supports(&args);
    if (status == FOVEAL_OK) return {};
    if (status == FOVEAL_UNSUPPORTED || status == FOVEAL_NO_DEVICE) return library.last_error();
    raise(status, library.last_error());
}

}  // namespace foveal::python
