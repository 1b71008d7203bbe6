// Python arguments turned into those of the C ABI, and the tensors that a call allocates.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <optional>

#include "errors.hpp"
#include "foveal/foveal.h"
#include "tensor.hpp"
#include "torch.hpp"

namespace foveal::python {

namespace nb = nanobind;

// Keyword arguments as Python hands them over; None: absent.
struct Options {
    nb::handle scale, causal, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask, seqused_q, seqused_k,
        block_table, page_indptr, page_indices, query_offset, tree_mask, workspace, dropout_p, dropout_state;
    nb::handle q_descale{}, k_descale{}, v_descale{}, uint8_as{};  // of the forward alone
};

// What PyTorch has to know of a call.
enum class Course {
    plain,     // nothing: an eager call on tensors that are what their memory says; all calls of other libraries
    recorded,  // a gradient of it is asked for, and nothing else
    watched,   // it is for the dispatcher
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
    Course course(nb::handle out);                     // raises for tensors that are negated or have a tangent
    void launch();                                     // on the current stream of q's library, without the GIL
    // Likewise with another function of the library, whose status it returns.
    template <class Function>
    foveal_status launch_with(Function&& call) const {
        void* const stream = current_stream(q_.type, q_.device);
        const nb::gil_scoped_release released;
        return call(stream);
    }
    nb::object result(bool wants_lse) const;
    void require_gradient();  // raises if there is none
    // Of a call that has been launched, with its log-sum-exp: PyTorch's autograd learns of it.
    nb::object recorded_result(const Options& options, bool wants_lse) const;
    // out and lse of an earlier call, for its gradient.
    void borrow_results(nb::handle out, nb::handle lse);
    const Borrowed& q() const { return q_; }
    PyObject* q_object() const { return objects_[0].ptr(); }

    const foveal_forward_args& args() const { return args_; }
    int32_t cuda_device() const { return !q_.is_description() && q_.device.type == dlpack::kCuda ? q_.device.id : -1; }

   private:
    void add(foveal_tensor& slot, std::optional<Borrowed>& borrowed, nb::handle object, const char* name);
    void set_numbers(const Options& options);
    void set_window(nb::handle window, bool causal);
    void set_tree(nb::handle tree_mask);
    void set_descales(const Options& options);
    void set_dropout(nb::handle dropout_p, nb::handle state);
    void set_workspace(nb::handle workspace);
    void shape_results(bool wants_lse);
    const Borrowed* borrowed(size_t i) const;  // objects_[i]; null: absent
    bool all_are_plain_tensors() const;

    Form form_;
    foveal_forward_args args_;
    // The places of objects_. Gradients flow into those before kMask.
    enum Place : size_t {
        kQ,
        kK,
        kV,
        kBias,
        kSinks,
        kAlibiSlopes,
        kMask,
        kSeqUsedQ,
        kSeqUsedK,
        kCuSeqlensQ,
        kCuSeqlensK,
        kBlockTable,
        kPageIndptr,
        kPageIndices,
        kQueryOffset,
        kTreeMask,
        kQDescale,
        kKDescale,
        kVDescale,
        kDropoutState,
        kWorkspace,
        kTensors
    };
    nb::handle objects_[kTensors];
    Borrowed q_, k_, v_;
    std::optional<Borrowed> cu_seqlens_q_, cu_seqlens_k_, seqused_q_, seqused_k_, alibi_slopes_, sinks_, bias_, mask_,
        block_table_, page_indptr_, page_indices_, query_offset_, tree_mask_, q_descale_, k_descale_, v_descale_,
        dropout_state_, workspace_, out_, lse_;
    std::array<uint64_t, 2> dropout_numbers_{};  // of a state that is no tensor
    nb::object out_object_, lse_object_, workspace_object_;
    bool out_is_new_ = false, is_familiar_ = false;
    torch::MainTensors main_;  // of PyTorch, in a call that its dispatcher has not brought here; else none
};

bool boolean(nb::handle value, const char* name);

// Of a pair of integers, a tuple or a list: their lowest 64 bits.
std::array<uint64_t, 2> dropout_numbers(nb::handle state);

// Raises, naming it, if `tensor` cannot be written to. `is_familiar`: PyTorch's checks are done.
void require_writable(const Borrowed& tensor, nb::handle object, const char* name, bool is_familiar);
void require_same_device(const Borrowed& tensor, const char* name, const Borrowed& q, const char* q_name);

// That of `device`, where `tensor` lies; raises if FOVEAL_BACKEND names another.
foveal_backend backend_on(dlpack::Device device, const char* tensor);

// Runs `call` on the current stream of the library that `q` comes from; q's device is current.
template <typename Call>
void launch_for(const Borrowed& q, Call&& call) {
    void* const stream = current_stream(q.type, q.device);
    foveal_status status;
    {
        const nb::gil_scoped_release released;
        status = call(stream);
    }
    check(status);
}

// foveal.append, its arguments by position; behind them whether PyTorch's dispatcher has brought the call.
nb::object append(PyObject* const* arguments);
// foveal.attention_backward: dout, dlse, out, lse, which gradients are wanted, q, k, v, cu_seqlens_q, cu_seqlens_k, and
// the options behind them.
nb::object backward(PyObject* const* arguments, const Options& options, bool dispatched);
// Why there is no gradient of q, k, v, cu_seqlens_q, cu_seqlens_k and the options behind them; empty if there is.
nb::object backward_supports(PyObject* const* arguments, const Options& options);
// The same of a call whose results are described.
std::string why_no_gradient(const foveal_forward_args& of);
// foveal.copy_pages and foveal.gather, likewise.
nb::object copy_pages(PyObject* const* arguments);
nb::object gather(PyObject* const* arguments);
// foveal.merge
nb::object merge(nb::handle outs, nb::handle lses, nb::handle out, nb::handle lse, bool dispatched);

}  // namespace foveal::python
