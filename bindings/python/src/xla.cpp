// The custom calls "foveal_attention" and "foveal_attention_backward" of XLA's foreign function interface, which
// foveal/_xla.py registers with JAX: a library of its own, without Python, on the C ABI and on the interface's headers,
// which jaxlib carries.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "foveal/foveal.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// gradient: where that of the operand goes; null: it has none.
struct Operand {
    std::string_view name;
    foveal_tensor foveal_forward_args::*slot;
    foveal_tensor foveal_backward_args::*gradient = nullptr;
};
constexpr std::array kOperands{
    Operand{"q", &foveal_forward_args::q, &foveal_backward_args::dq},
    Operand{"k", &foveal_forward_args::k, &foveal_backward_args::dk},
    Operand{"v", &foveal_forward_args::v, &foveal_backward_args::dv},
    Operand{"seqused_q", &foveal_forward_args::seqused_q},
    Operand{"seqused_k", &foveal_forward_args::seqused_k},
    Operand{"alibi_slopes", &foveal_forward_args::alibi_slopes, &foveal_backward_args::dalibi_slopes},
    Operand{"sinks", &foveal_forward_args::sinks, &foveal_backward_args::dsinks},
    Operand{"bias", &foveal_forward_args::bias, &foveal_backward_args::dbias},
    Operand{"mask", &foveal_forward_args::mask},
    Operand{"q_descale", &foveal_forward_args::q_descale},
    Operand{"k_descale", &foveal_forward_args::k_descale},
    Operand{"v_descale", &foveal_forward_args::v_descale},
};

ffi::Error invalid(std::string_view name, const char* what) {
    return ffi::Error::InvalidArgument(std::string(name) + what);
}

foveal_dtype dtype_of(ffi::DataType type) {
    switch (type) {
        case ffi::F32:
            return FOVEAL_F32;
        case ffi::BF16:
            return FOVEAL_BF16;
        case ffi::F16:
            return FOVEAL_F16;
        case ffi::F8E4M3FN:
            return FOVEAL_E4M3;
        case ffi::S32:
            return FOVEAL_I32;
        case ffi::PRED:
            return FOVEAL_BOOL;
        default:
            return 0;
    }
}

// XLA's buffers are packed, in the order of their dimensions: foveal/jax.py asks for no other layout.
ffi::Error view_of(const ffi::AnyBuffer& buffer, std::string_view name, foveal_tensor& view) {
    const auto shape = buffer.dimensions();
    if (shape.size() > FOVEAL_MAX_RANK) return invalid(name, " has more than 4 dimensions");
    view = {};
    view.data = buffer.untyped_data();
    view.dtype = dtype_of(buffer.element_type());
    if (view.dtype == 0) return invalid(name, " is of an element type that foveal does not know");
    view.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        view.shape[i] = shape[i];
        view.stride[i] = stride;
        stride *= std::max<int64_t>(shape[i], 1);
    }
    return ffi::Error::Success();
}

bool has_word(std::string_view words, std::string_view word) {
    while (!words.empty()) {
        const size_t end = std::min(words.find(' '), words.size());
        if (words.substr(0, end) == word) return true;
        words.remove_prefix(std::min(end + 1, words.size()));
    }
    return false;
}

ffi::ErrorCode code_of(foveal_status status) {
    switch (status) {
        case FOVEAL_INVALID_ARGUMENT:
            return ffi::ErrorCode::kInvalidArgument;
        case FOVEAL_UNSUPPORTED:
            return ffi::ErrorCode::kUnimplemented;
        case FOVEAL_NO_DEVICE:
            return ffi::ErrorCode::kFailedPrecondition;
        case FOVEAL_OUT_OF_MEMORY:
            return ffi::ErrorCode::kResourceExhausted;
        default:
            return ffi::ErrorCode::kInternal;
    }
}

// What a call says besides its tensors. `given`: the names of the operands that there are, in the order of kOperands
// and dropout_state behind them, with a space between.
struct Attributes {
    std::string_view given;
    float scale;  // NaN: 1/sqrt(d)
    bool top_left;
    int64_t window_left, window_right;  // -1: no limit
    float softcap;
    int64_t chunk;
    float dropout_p;
};

// The next of the operands.
ffi::Error take(const ffi::RemainingArgs& buffers, size_t& next, std::string_view name, foveal_tensor& view) {
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = buffers.get<ffi::AnyBuffer>(next++);
    return buffer.has_error() ? buffer.error() : view_of(buffer.value(), name, view);
}

// The next of the results.
ffi::Error take(const ffi::RemainingRets& buffers, size_t& next, std::string_view name, foveal_tensor& view) {
    auto buffer = buffers.get<ffi::AnyBuffer>(next++);  // jaxlib 0.5 reads no constant one
    return buffer.has_error() ? buffer.error() : view_of(**buffer, name, view);
}

// The next of the operands, as the state of dropout: the halves of its two numbers, since JAX has 64-bit integers only
// where it is asked for them.
ffi::Error take_dropout_state(const ffi::RemainingArgs& buffers, size_t& next, const uint64_t*& state) {
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = buffers.get<ffi::AnyBuffer>(next++);
    if (buffer.has_error()) return buffer.error();
    if (buffer->element_type() != ffi::U32 || buffer->element_count() != 4)
        return invalid("dropout_state", " is not of four 32-bit words");
    state = static_cast<const uint64_t*>(buffer->untyped_data());
    return ffi::Error::Success();
}

// next: becomes the number of operands that were taken.
ffi::Error set_operands(foveal_forward_args& args, const ffi::RemainingArgs& buffers, const Attributes& attributes,
                        size_t& next) {
    for (const Operand& operand : kOperands) {
        if (!has_word(attributes.given, operand.name)) continue;
        if (ffi::Error error = take(buffers, next, operand.name, args.*operand.slot); error.failure()) return error;
    }
    args.scale = attributes.scale;
    args.alignment = attributes.top_left ? FOVEAL_TOP_LEFT : FOVEAL_BOTTOM_RIGHT;
    args.window_left = attributes.window_left;
    args.window_right = attributes.window_right;
    args.softcap = attributes.softcap;
    args.chunk = attributes.chunk;
    args.dropout_p = attributes.dropout_p;
    return has_word(attributes.given, "dropout_state") ? take_dropout_state(buffers, next, args.dropout_state)
                                                       : ffi::Error::Success();
}

ffi::Error result_of(foveal_status status) {
    return status == FOVEAL_OK ? ffi::Error::Success() : ffi::Error(code_of(status), foveal_last_error());
}

ffi::Error forward(foveal_backend backend, void* stream, const ffi::RemainingArgs& operands,
                   const ffi::RemainingRets& results, const Attributes& attributes) {
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = backend;
    size_t next = 0;
    if (ffi::Error error = set_operands(args, operands, attributes, next); error.failure()) return error;
    if (next != operands.size()) return ffi::Error::InvalidArgument("the call has operands without a name");
    for (size_t i = 0; i < results.size();) {
        const bool is_out = i == 0;
        if (ffi::Error error = take(results, i, is_out ? "out" : "lse", is_out ? args.out : args.lse); error.failure())
            return error;
    }
    return result_of(foveal_forward(&args, stream));
}

// Operands: the forward's, out, lse, dout and dlse. Results: the gradients of those that have one, in their order.
ffi::Error backward_on_cpu(ffi::RemainingArgs operands, ffi::RemainingRets results, std::string_view given, float scale,
                           bool top_left, int64_t window_left, int64_t window_right, float softcap, int64_t chunk,
                           float dropout_p) {
    foveal_forward_args forward;
    foveal_forward_args_init(&forward);
    foveal_backward_args args;
    foveal_backward_args_init(&args);
    forward.backend = FOVEAL_BACKEND_CPU;
    args.forward = &forward;
    const Attributes attributes{given, scale, top_left, window_left, window_right, softcap, chunk, dropout_p};
    size_t next = 0, next_result = 0;
    if (ffi::Error error = set_operands(forward, operands, attributes, next); error.failure()) return error;
    const std::array rest{Operand{"out", &foveal_forward_args::out}, Operand{"lse", &foveal_forward_args::lse}};
    for (const Operand& operand : rest)
        if (ffi::Error error = take(operands, next, operand.name, forward.*operand.slot); error.failure()) return error;
    if (ffi::Error error = take(operands, next, "dout", args.dout); error.failure()) return error;
    if (ffi::Error error = take(operands, next, "dlse", args.dlse); error.failure()) return error;
    for (const Operand& operand : kOperands) {
        if (operand.gradient == nullptr || !has_word(given, operand.name)) continue;
        if (ffi::Error error = take(results, next_result, operand.name, args.*operand.gradient); error.failure())
            return error;
    }
    return result_of(foveal_backward(&args, nullptr));
}

auto with_attributes() {
    return ffi::Ffi::Bind()
        .RemainingArgs()
        .RemainingRets()
        .Attr<std::string_view>("given")
        .Attr<float>("scale")
        .Attr<bool>("top_left")
        .Attr<int64_t>("window_left")
        .Attr<int64_t>("window_right")
        .Attr<float>("softcap")
        .Attr<int64_t>("chunk")
        .Attr<float>("dropout_p");
}

ffi::Error forward_on_cpu(ffi::RemainingArgs operands, ffi::RemainingRets results, std::string_view given, float scale,
                          bool top_left, int64_t window_left, int64_t window_right, float softcap, int64_t chunk,
                          float dropout_p) {
    return forward(FOVEAL_BACKEND_CPU, nullptr, operands, results,
                   {given, scale, top_left, window_left, window_right, softcap, chunk, dropout_p});
}

ffi::Error forward_on_cuda(ffi::RemainingArgs operands, ffi::RemainingRets results, std::string_view given, float scale,
                           bool top_left, int64_t window_left, int64_t window_right, float softcap, int64_t chunk,
                           float dropout_p, void* stream) {
    return forward(FOVEAL_BACKEND_SM90, stream, operands, results,
                   {given, scale, top_left, window_left, window_right, softcap, chunk, dropout_p});
}

}  // namespace

#pragma GCC visibility push(default)
// Of the interface that the handlers were built for: an earlier jaxlib would refuse them, and itself, when it starts.
extern "C" const int32_t foveal_xla_api_minor;
const int32_t foveal_xla_api_minor = XLA_FFI_API_MINOR;
XLA_FFI_DEFINE_HANDLER_SYMBOL(foveal_xla_cpu, forward_on_cpu, with_attributes());
XLA_FFI_DEFINE_HANDLER_SYMBOL(foveal_xla_backward_cpu, backward_on_cpu, with_attributes());
// A launch may be part of a CUDA graph: foveal allocates nothing and never synchronises (contract, 1.8).
XLA_FFI_DEFINE_HANDLER_SYMBOL(foveal_xla_cuda, forward_on_cuda, with_attributes().Ctx<ffi::PlatformStream<void*>>(),
                              {ffi::Traits::kCmdBufferCompatible});
#pragma GCC visibility pop
