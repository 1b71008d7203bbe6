// A Python object's tensor as the C ABI sees it: borrowed for one call, never copied.
#pragma once

#include <nanobind/nanobind.h>

#include "dlpack.hpp"
#include "foveal/foveal.h"
#include "framework.hpp"

namespace foveal::python {

namespace nb = nanobind;

// Rows in C order without gaps?
bool is_packed(const foveal_tensor& view);
void pack_strides(foveal_tensor& view);

// What a borrowed tensor may be, beside a tensor.
enum class Form {
    tensor,
    description,  // also a pair (shape, dtype), without memory
};

class Borrowed {
   public:
    // Raises, naming the argument, if the object is no tensor that the C ABI can describe.
    Borrowed(PyObject* object, const char* name, Form form = Form::tensor);
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    foveal_tensor view{};
    dlpack::Device device{dlpack::kCpu, 0};
    const TensorType* type = nullptr;  // null: a description
    bool read_only = false;

   private:
    void borrow_through_capsule(PyObject* object, const char* name);
    void describe(PyObject* object, const char* name);
    void take(const dlpack::Tensor& tensor, const char* name);

    nb::object capsule_;  // not consumed: frees what it holds when it goes
};

}  // namespace foveal::python
