// A Python object's tensor as the C ABI sees it: borrowed for one call, never copied.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

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
    dispatched,   // a tensor that PyTorch's dispatcher has brought here: nothing but its memory counts any more
    description,  // also a pair (shape, dtype), or a tensor of PyTorch without memory
};

// What the caller says uint8 elements are, of q, k, v and the caches. not_asked: the function has no such argument.
enum class Bytes { not_asked, unknown, e4m3 };
// Of the argument uint8_as: None or "float8_e4m3fn". Invalid: not asked.
Bytes bytes_of(nb::handle uint8_as);

// Thrown for a tensor of PyTorch that has no memory to be read here (fake, meta, wrapped by torch.func, of a type of
// its own), though PyTorch's dispatcher may know what to make of it.
struct Unreadable {
    std::string name;
    std::string message;
};

// An integer of 64 bits; raises, naming it.
int64_t integer(nb::handle value, const char* name);

// Shape and dtype of the pair (shape, dtype); packed, without memory.
void describe_pair(nb::tuple pair, const char* name, foveal_tensor& view, Bytes bytes = Bytes::not_asked);

class Borrowed {
   public:
    // Raises, naming the argument, if the object is no tensor that the C ABI can describe. Throws Unreadable.
    Borrowed(PyObject* object, const char* name, Form form = Form::tensor, Bytes bytes = Bytes::not_asked);
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    foveal_tensor view{};
    dlpack::Device device{dlpack::kCpu, 0};
    TensorType type;
    bool read_only = false;

    bool is_description() const { return type.type == nullptr; }
    bool is_torch() const { return type.type != nullptr && type.framework == Framework::torch; }

   private:
    void borrow_from_torch(PyObject* object, const char* name, Form form);
    void borrow_through_capsule(PyObject* object, const char* name, Form form);
    dlpack::Tensor exported(const char* name);
    void take(const dlpack::Tensor& tensor, const char* name);

    Bytes bytes_;
    nb::object capsule_;  // not consumed: frees what it holds when it goes
};

}  // namespace foveal::python
