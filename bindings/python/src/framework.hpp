// The array libraries that tensors come from. None is imported here: each is found only if the caller has imported it.
#pragma once

#include <nanobind/nanobind.h>

#include "dlpack.hpp"
#include "foveal/foveal.h"

namespace foveal::python {

namespace nb = nanobind;

enum class Framework { torch, numpy, cupy, jax, other };

// What foveal knows about a Python type; found once a type.
struct TensorType {
    PyTypeObject* type;
    Framework framework;
    const dlpack::ExchangeApi* exchange;  // null: through __dlpack__()
};

const TensorType& tensor_type_of(PyObject* object);

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
// f32. A CUDA `device` is the current one. `like_view` is like's own view. To the user goes returned_form() of it.
nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& like_view,
                      const foveal_tensor& view, bool dtype_of_like);
nb::object returned_form(const TensorType& type, nb::object tensor);
// Every element of a new_tensor() becomes `value`, on the current stream: 0, or any if it is of f32.
void fill(const TensorType& type, nb::handle tensor, float value);

void define_host_buffer(nb::module_& module);

// torch only: raises if gradients are recorded and `object` asks for one.
void refuse_gradient(const TensorType& type, PyObject* object, const char* name);

}  // namespace foveal::python
