// A forward call whose gradient PyTorch records: what its backward pass will need, handed to foveal._torch_eager.
#include <array>
#include <string>

#include "arguments.hpp"
#include "errors.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

nb::object side_of_window(int64_t width) {
    return width == FOVEAL_UNLIMITED ? nb::object(nb::none()) : nb::int_(width);
}

nb::handle or_none(nb::handle object) { return object.is_valid() ? object : nb::handle(Py_None); }

}  // namespace

// Of a subclass the results are too, which the dispatcher sees to; what is no tensor of PyTorch it refuses.
bool ForwardArguments::all_are_plain_tensors() const {
    for (size_t i = 0; i < kTensors; ++i) {
        const Borrowed* const tensor = borrowed(i);
        if (tensor != nullptr && (!tensor->is_torch() || tensor->type.kind != Kind::tensor)) return false;
    }
    return true;
}

void ForwardArguments::require_gradient() {
    describe_results(true);
    const std::string reason = why_no_gradient(args_);
    if (!reason.empty())
        raise(FOVEAL_UNSUPPORTED, "a gradient is recorded, and there is none: " + reason +
                                      " (or call under torch.no_grad() or torch.inference_mode())");
}

// Numbers go as they were understood, for the caller's objects may change until the backward pass.
nb::object ForwardArguments::recorded_result(const Options& options, bool wants_lse) const {
    const auto tensor = [this](size_t i) { return or_none(objects_[i]); };
    const nb::object saved = nb::make_tuple(out_object_, lse_object_, tensor(kCuSeqlensQ), tensor(kCuSeqlensK),
                                            tensor(kMask), tensor(kSeqUsedQ), tensor(kSeqUsedK), tensor(kQueryOffset),
                                            tensor(kTreeMask), tensor(kDropoutState));
    const bool is_pair = args_.dropout_state == dropout_numbers_.data();
    const nb::object numbers =
        nb::make_tuple(options.scale.is_none() ? nb::object(nb::none()) : nb::float_(args_.scale),
                       nb::make_tuple(side_of_window(args_.window_left), side_of_window(args_.window_right)),
                       options.align, nb::float_(args_.softcap), nb::int_(args_.chunk), nb::float_(args_.dropout_p),
                       is_pair ? nb::object(nb::make_tuple(dropout_numbers_[0], dropout_numbers_[1])) : nb::none());
    const std::array<PyObject*, 9> arguments{objects_[kQ].ptr(),
                                             objects_[kK].ptr(),
                                             objects_[kV].ptr(),
                                             tensor(kSinks).ptr(),
                                             tensor(kBias).ptr(),
                                             tensor(kAlibiSlopes).ptr(),
                                             wants_lse ? Py_True : Py_False,
                                             saved.ptr(),
                                             numbers.ptr()};
    return torch::recorded(arguments.data(), arguments.size());
}

}  // namespace foveal::python
