// The array libraries that tensors come from. None is imported here: each is found only if the caller has imported it.
#pragma once

#include <nanobind/nanobind.h>

#include "dlpack.hpp"
#include "foveal/foveal.h"

namespace foveal::python {

namespace nb = nanobind;

enum class Framework { torch, numpy, cupy, jax, other };

// How a type of tensors stands to its library's own.
enum class Kind {
    tensor,     // it is torch.Tensor or torch.nn.Parameter, or another library's
    subclass,   // torch only: its memory and functions are torch.Tensor's
    overrides,  // memory does not say all: __torch_function__ or __torch_dispatch__ of its own (FakeTensor, DTensor,
                // ...), or NumPy's masked arrays
};

// What foveal knows about a Python type.
struct TensorType {
    PyTypeObject* type = nullptr;
    Framework framework = Framework::other;
    Kind kind = Kind::tensor;
    const dlpack::ExchangeApi* exchange = nullptr;  // null: through __dlpack__()
};

TensorType tensor_type_of(PyObject* object);

// The stream that the framework works on now; null for the CPU and for CUDA's legacy default stream.
void* current_stream(const TensorType& type, dlpack::Device device);

// Makes `device` the current one for its lifetime: a null stream means the current device's.
class CurrentDevice {
   public:
    CurrentDevice(const TensorType& type, dlpack::Device device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

   private:
    nb::object set_device_;  // none if the device is the current one
    nb::object before_;
};

// A packed tensor of the library and device of `like`, values undefined, with the shape of `view`; of like's dtype, or
// f32. A CUDA `device` is the current one. To the user goes returned_form() of it.
nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& view,
                      bool dtype_of_like);
nb::object returned_form(const TensorType& type, nb::object tensor);
// Every element of a new_tensor() becomes `value`, on the current stream: 0, or any if it is of f32.
void fill(const TensorType& type, nb::handle tensor, float value);

void define_host_buffer(nb::module_& module);

}  // namespace foveal::python
