// Python arguments turned into those of the C ABI, and the tensors that a call allocates.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "foveal/foveal.h"
#include "tensor.hpp"

namespace foveal::python {

namespace nb = nanobind;

// Keyword arguments as Python hands them over; None: absent.
struct Options {
    nb::handle scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k;
};

// One forward problem. Borrows its tensors as long as it lives.
class ForwardArguments {
   public:
    ForwardArguments(nb::handle q, nb::handle k, nb::handle v, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                     const Options& options, Form form);

    void set_backend(nb::handle backend);              // None: where q lies
    void describe_results(bool wants_lse);             // packed, without memory
    CurrentDevice enter_device() const;                // for set_results() and launch()
    void set_results(nb::handle out, bool wants_lse);  // allocates what is not given
    void refuse_gradients() const;
    void launch();  // on the current stream of q's library, without the GIL
    nb::object result(bool wants_lse) const;

    const foveal_forward_args& args() const { return args_; }
    int32_t cuda_device() const { return q_.type != nullptr && q_.device.type == dlpack::kCuda ? q_.device.id : -1; }

   private:
    void add(foveal_tensor& slot, std::optional<Borrowed>& borrowed, nb::handle object, const char* name);
    void set_numbers(const Options& options);
    void set_window(nb::handle window, bool causal);
    void shape_results(bool wants_lse);

    Form form_;
    foveal_forward_args args_;
    nb::handle objects_[6];  // q, k, v, bias, sinks, alibi_slopes
    Borrowed q_, k_, v_;
    std::optional<Borrowed> cu_seqlens_q_, cu_seqlens_k_, seqused_q_, seqused_k_, alibi_slopes_, sinks_, bias_, mask_,
        out_, lse_;
    nb::object out_object_, lse_object_;
    bool out_is_new_ = false;
};

bool boolean(nb::handle value, const char* name);

// foveal.merge
nb::object merge(nb::handle outs, nb::handle lses, nb::handle out, nb::handle lse);

}  // namespace foveal::python
