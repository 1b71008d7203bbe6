// foveal.append.
#include <array>
#include <string>

#include "arguments.hpp"
#include "call_tensors.hpp"
#include "errors.hpp"
#include "library.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

using Args = foveal_append_args;

// As foveal.append() has them, but for `interleaved` behind positions, and uint8_as at the end.
constexpr std::array kParameters{Parameter<Args>{"k", &Args::k},
                                 Parameter<Args>{"v", &Args::v},
                                 Parameter<Args>{"k_cache", &Args::k_cache, true},
                                 Parameter<Args>{"v_cache", &Args::v_cache, true},
                                 Parameter<Args>{"slot_mapping", &Args::slot_mapping},
                                 Parameter<Args>{"cache_lengths", &Args::cache_lengths},
                                 Parameter<Args>{"cu_seqlens", &Args::cu_seqlens},
                                 Parameter<Args>{"block_table", &Args::block_table},
                                 Parameter<Args>{"cos", &Args::cos},
                                 Parameter<Args>{"sin", &Args::sin},
                                 Parameter<Args>{"positions", &Args::positions},
                                 Parameter<Args>{"q", &Args::q},
                                 Parameter<Args>{"q_out", &Args::q_out, true},
                                 Parameter<Args>{"k_scale", &Args::k_scale},
                                 Parameter<Args>{"v_scale", &Args::v_scale},
                                 Parameter<Args>{"k_scale_out", &Args::k_scale_out, true},
                                 Parameter<Args>{"v_scale_out", &Args::v_scale_out, true}};
constexpr size_t kInterleaved = 11, kUint8As = 18;  // their places among the arguments
constexpr size_t kK = 0, kV = 1, kQ = 11, kQOut = 12;

using Tensors = CallTensors<Args, kParameters>;

// q's own result, if there is none to write to; of q's device, which is current.
void make_q_out(Tensors& tensors, Form form) {
    if (!tensors.given(kQ) || tensors.given(kQOut)) return;
    foveal_tensor view = tensors[kQ].view;
    pack_strides(view);
    tensors.put_new(kQOut, new_tensor(tensors[kQ].type, tensors.object(kQ), tensors[kQ].device, view, true), form);
}

}  // namespace

nb::object append(PyObject* const* arguments) {
    constexpr size_t kArguments = kParameters.size() + 2;
    const bool dispatched = arguments[kArguments] == Py_True;
    const bool interleaved = boolean(arguments[kInterleaved], "interleaved");
    Tensors tensors([&](size_t i) { return arguments[i < kInterleaved ? i : i + 1]; }, arguments[kUint8As]);
    const size_t first = tensors.first_of({kK, kV, kQ});
    if (first == Tensors::kCount) refuse("k, v and q are None; there is nothing to append");
    const auto launch = [&](foveal_backend backend) {
        if (library.append == nullptr) raise(FOVEAL_UNSUPPORTED, "this build of libfoveal has no append");
        Args args;
        library.init(args);
        args.backend = backend;
        args.rotary_layout = interleaved ? FOVEAL_ROTARY_INTERLEAVED : FOVEAL_ROTARY_HALF_SPLIT;
        tensors.fill(args);
        launch_for(tensors[first], [&](void* stream) { return library.append(&args, stream); });
        nb::object q_out = nb::borrow(tensors.object(kQOut));
        return tensors.is_new(kQOut) ? returned_form(tensors[kQ].type, std::move(q_out)) : q_out;
    };
    return run_call(
        tensors, first, dispatched, kParameters[first].name,
        [&] { return torch::through_dispatcher("_append", arguments, kArguments); },
        [&](Form form) { make_q_out(tensors, form); }, launch);
}

}  // namespace foveal::python
