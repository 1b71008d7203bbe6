// What is special about PyTorch: its dispatcher, autograd and lazily changed views, past which an eager call reads
// memory.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>

#include "dlpack.hpp"
#include "foveal/foveal.h"
#include "framework.hpp"

namespace foveal::python {
enum class Bytes;  // tensor.hpp
}

namespace foveal::python::torch {

Kind kind_of(PyTypeObject* type);

// Does PyTorch record or change the operators that this thread calls? A trace of torch.jit, a TorchDispatchMode.
bool calls_are_watched();
// Is a transform of torch.func active?
bool is_transformed();

// The tensors that every call has: q, k, v and, if it is given, out; of a merge, its parts and results. Each once.
class MainTensors {
   public:
    static constexpr size_t kMost = 2 * FOVEAL_MAX_MERGE_PARTS + 2;
    void begin(foveal_dtype dtype, dlpack::Device device) {
        count_ = 0;
        dtype_ = dtype;
        device_ = device;
    }
    void add(PyObject* object, int32_t rank) {
        if (std::find(objects_.data(), objects_.data() + count_, object) != objects_.data() + count_) return;
        objects_[count_] = object;
        ranks_[count_++] = rank;
    }
    bool looks_like(const MainTensors& other) const {
        return count_ == other.count_ && dtype_ == other.dtype_ && device_ == other.device_ &&
               std::equal(ranks_.data(), ranks_.data() + count_, other.ranks_.data());
    }
    size_t count() const { return count_; }
    PyObject* const* objects() const { return objects_.data(); }
    int32_t rank(size_t i) const { return ranks_[i]; }

   private:
    size_t count_ = 0;
    foveal_dtype dtype_ = 0;  // of the first
    dlpack::Device device_{dlpack::kCpu, 0};
    std::array<PyObject*, kMost> objects_;
    std::array<int32_t, kMost> ranks_;
};

// Have tensors like these in every respect but their sizes passed the checks below, in a thread that was in the same
// state? One call of PyTorch in place of one for each tensor and check.
bool are_familiar(const MainTensors& tensors);
// They have: no call is watched, and none of them is negated or has a derivative.
void make_familiar(const MainTensors& tensors);

// Raises if `object` has no memory that could be read as it is, and no operator could change that: sparse, nested,
// quantized, lazily negated.
void refuse_unreadable(PyObject* object, const char* name);
void refuse_negative(PyObject* object, const char* name);

// Raises if autograd would have to know of the call: a gradient that is recorded, or the tangent of a dual number.
// There are tangents only at a level of torch.autograd.forward_ad or torch.func.jvp.
void refuse_derivative(PyObject* object, const char* name, bool tangents);
void refuse_tangent(PyObject* object, const char* name, bool tangents);
// Does the tensor require a gradient, here and now?
bool records_gradient(PyObject* object);
bool tangents_may_be();

// What PyTorch's own functions do before they write to a tensor: a check, and one more in its version counter.
void refuse_uncounted(PyObject* object, const char* name);
void announce_writes(nb::handle tensors);  // a list or tuple

// Shape, strides, type and device of a tensor without memory. False: it is on no device (meta).
bool describe(PyObject* object, const char* name, foveal_tensor& view, dlpack::Device& device, Bytes bytes);

// Packed, values undefined; on CUDA `device` is the current one. See new_tensor().
nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& view);

nb::object current_stream(dlpack::Device device);
nb::object current_device();
nb::object set_device();

// int64 [2] on the device of `q`, from PyTorch's generator of that device.
nb::object drawn_dropout_state(PyObject* q);

// The results of a call that is done, as autograd gives them: foveal._torch_eager.record(*arguments).
nb::object recorded(PyObject* const* arguments, size_t count);

// The function of foveal.torch that calls the registered operator: through the dispatcher.
nb::object through_dispatcher(const char* function, PyObject* const* arguments, size_t count);

}  // namespace foveal::python::torch
