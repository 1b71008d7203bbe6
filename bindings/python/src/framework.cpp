#include "framework.hpp"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <string>

#include "errors.hpp"
#include "tensor.hpp"

namespace foveal::python {
namespace {

// A string that Python has interned: attribute look-ups with it compare pointers.
PyObject* interned(const char* text) {
    PyObject* const string = PyUnicode_InternFromString(text);
    if (string == nullptr) rethrow();
    return string;
}

nb::object attribute(nb::handle object, PyObject* name) {
    PyObject* const value = PyObject_GetAttr(object.ptr(), name);
    if (value == nullptr) rethrow();
    return nb::steal(value);
}

nb::object imported(const char* module) {
    const nb::object modules = nb::module_::import_("sys").attr("modules");
    return nb::borrow(modules.attr("get")(module));  // None if the caller has not imported it
}

bool is_instance(PyObject* object, const char* module, const char* type) {
    const nb::object found = imported(module);
    if (found.is_none() || !nb::hasattr(found, type)) return false;
    const int answer = PyObject_IsInstance(object, found.attr(type).ptr());
    if (answer < 0) rethrow();
    return answer == 1;
}

Framework framework_of(PyObject* object) {
    if (is_instance(object, "torch", "Tensor")) return Framework::torch;
    if (is_instance(object, "numpy", "ndarray")) return Framework::numpy;
    if (is_instance(object, "cupy", "ndarray")) return Framework::cupy;
    if (is_instance(object, "jax", "Array")) return Framework::jax;
    return Framework::other;
}

const dlpack::ExchangeApi* exchange_api_of(PyTypeObject* type) {
    const nb::object capsule =
        nb::steal(PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    if (!capsule.is_valid()) return PyErr_Clear(), nullptr;
    auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) return PyErr_Clear(), nullptr;
    while (api != nullptr && api->version.major != dlpack::kMajorVersion) api = api->previous;
    return api != nullptr && api->borrow_from_object != nullptr ? api : nullptr;
}

// Functions of torch that every call needs. torch is imported: one of its tensors is here.
struct Torch {
    PyObject* empty_like;
    PyObject* bfloat16;
    PyObject* float16;
    PyObject* float32;
    PyObject* is_grad_enabled;
    PyObject* empty_strided_cuda = nullptr;  // null where this PyTorch has none
    PyObject* get_device = nullptr;          // null where torch has no CUDA
    PyObject* set_device = nullptr;
    PyObject* current_raw_stream = nullptr;

    static const Torch& get() {
        static const Torch torch;
        return torch;
    }

   private:
    Torch() {
        const nb::object module = nb::module_::import_("torch"), c = module.attr("_C");
        empty_like = nb::object(module.attr("empty_like")).release().ptr();
        bfloat16 = nb::object(module.attr("bfloat16")).release().ptr();
        float16 = nb::object(module.attr("float16")).release().ptr();
        float32 = nb::object(module.attr("float32")).release().ptr();
        is_grad_enabled = nb::object(module.attr("is_grad_enabled")).release().ptr();
        if (!nb::hasattr(c, "_cuda_getCurrentRawStream")) return;
        get_device = nb::object(c.attr("_cuda_getDevice")).release().ptr();
        set_device = nb::object(c.attr("_cuda_setDevice")).release().ptr();
        current_raw_stream = nb::object(c.attr("_cuda_getCurrentRawStream")).release().ptr();
        const nb::object compiled = nb::getattr(nb::getattr(c, "_dynamo", nb::none()), "guards", nb::none());
        if (nb::hasattr(compiled, "_empty_strided_cuda"))
            empty_strided_cuda = nb::object(compiled.attr("_empty_strided_cuda")).release().ptr();
    }
};

nb::object call(PyObject* function) {
    PyObject* const result = PyObject_CallNoArgs(function);
    if (result == nullptr) rethrow();
    return nb::steal(result);
}

nb::tuple tuple_of(const int64_t* numbers, int32_t rank) {
    nb::object tuple = nb::steal(PyTuple_New(rank));
    for (int32_t i = 0; i < rank; ++i) PyTuple_SetItem(tuple.ptr(), i, PyLong_FromLongLong(numbers[i]));
    return nb::borrow<nb::tuple>(tuple);
}

nb::tuple shape_of(const foveal_tensor& view) { return tuple_of(view.shape, view.rank); }

// On the current CUDA device. PyTorch's compiled code allocates so: from the caching allocator, past the dispatcher.
// 1.1 us in place of empty_like's 3.6 us (H100's host, PyTorch 2.11, 2026-11-25).
nb::object new_cuda_tensor(const foveal_tensor& view) {
    const Torch& torch = Torch::get();
    PyObject* const dtype = view.dtype == FOVEAL_BF16  ? torch.bfloat16
                            : view.dtype == FOVEAL_F16 ? torch.float16
                                                       : torch.float32;
    PyObject* const tensor = PyObject_CallFunctionObjArgs(torch.empty_strided_cuda, shape_of(view).ptr(),
                                                          tuple_of(view.stride, view.rank).ptr(), dtype, nullptr);
    if (tensor == nullptr) rethrow();
    return nb::steal(tensor);
}

// torch.empty_like is the quickest public way to a tensor there; it also copies the strides.
nb::object new_torch_tensor(PyObject* like, dlpack::Device device, const foveal_tensor& like_view,
                            const foveal_tensor& view, bool dtype_of_like) {
    if (device.type == dlpack::kCuda && Torch::get().empty_strided_cuda != nullptr) return new_cuda_tensor(view);
    const bool same_shape = dtype_of_like && like_view.rank == view.rank &&
                            std::equal(view.shape, view.shape + view.rank, like_view.shape) && is_packed(like_view);
    PyObject* tensor = nullptr;
    if (same_shape) {
        tensor = PyObject_CallFunctionObjArgs(Torch::get().empty_like, like, nullptr);
    } else if (dtype_of_like) {
        static PyObject* const new_empty = interned("new_empty");
        tensor = PyObject_CallMethodObjArgs(like, new_empty, shape_of(view).ptr(), nullptr);
    } else {
        return nb::handle(like).attr("new_empty")(shape_of(view), nb::arg("dtype") = nb::handle(Torch::get().float32));
    }
    if (tensor == nullptr) rethrow();
    return nb::steal(tensor);
}

// Host memory that JAX takes over: its own arrays cannot be written to.
struct HostBuffer {
    nb::ndarray<> array;
};

// Aligned as XLA wants it, or from_dlpack() would copy.
nb::object new_host_buffer(const foveal_tensor& view) {
    constexpr std::align_val_t kAlignment{64};
    size_t elements = 1;
    std::array<size_t, FOVEAL_MAX_RANK> shape{};
    for (int32_t i = 0; i < view.rank; ++i) elements *= shape[i] = static_cast<size_t>(view.shape[i]);
    const nb::dlpack::dtype dtype{static_cast<uint8_t>(view.dtype == FOVEAL_BF16 ? dlpack::kBfloat : dlpack::kFloat),
                                  static_cast<uint8_t>(view.dtype == FOVEAL_F32 ? 32 : 16), 1};
    void* const data = operator new(std::max<size_t>(elements * dtype.bits / 8, 1), kAlignment);
    const nb::capsule owner(data, [](void* memory) noexcept { operator delete(memory, kAlignment); });
    return nb::cast(HostBuffer{{data, static_cast<size_t>(view.rank), shape.data(), owner, nullptr, dtype}});
}

}  // namespace

void define_host_buffer(nb::module_& module) {
    nb::class_<HostBuffer>(module, "HostBuffer", "Memory of a result, on its way to the library that it is for.")
        .def("__dlpack__", [](const HostBuffer& buffer, const nb::kwargs&) { return nb::cast(buffer.array); })
        .def("__dlpack_device__", [](const HostBuffer&) { return nb::make_tuple(static_cast<int>(dlpack::kCpu), 0); });
}

const TensorType& tensor_type_of(PyObject* object) {
    constexpr size_t kTypes = 16;
    static std::array<TensorType, kTypes> known{};
    static size_t next = 0;
    PyTypeObject* const type = Py_TYPE(object);
    for (const TensorType& entry : known)
        if (entry.type == type) return entry;
    const TensorType found{type, framework_of(object), exchange_api_of(type)};
    TensorType& entry = known[next];
    next = (next + 1) % kTypes;
    Py_IncRef(reinterpret_cast<PyObject*>(type));
    Py_DecRef(reinterpret_cast<PyObject*>(entry.type));
    return entry = found;
}

void* current_stream(const TensorType& type, dlpack::Device device) {
    if (device.type != dlpack::kCuda) return nullptr;
    if (type.exchange != nullptr) {
        void* stream = nullptr;
        if (type.exchange->current_stream(device.type, device.id, &stream) != 0) rethrow();
        return stream;
    }
    nb::object stream;
    if (type.framework == Framework::torch) {
        stream = nb::handle(Torch::get().current_raw_stream)(device.id);
    } else if (type.framework == Framework::cupy) {
        const CurrentDevice guard(type, device);
        stream = imported("cupy").attr("cuda").attr("get_current_stream")().attr("ptr");
    } else {
        return nullptr;
    }
    void* const pointer = PyLong_AsVoidPtr(stream.ptr());
    if (pointer == nullptr && PyErr_Occurred() != nullptr) rethrow();
    return pointer;
}

CurrentDevice::CurrentDevice(const TensorType& type, dlpack::Device device) {
    if (device.type != dlpack::kCuda) return;
    nb::object set_device;
    if (type.framework == Framework::torch) {
        before_ = call(Torch::get().get_device);
        set_device = nb::borrow(Torch::get().set_device);
    } else if (type.framework == Framework::cupy) {
        const nb::object runtime = imported("cupy").attr("cuda").attr("runtime");
        before_ = runtime.attr("getDevice")();
        set_device = runtime.attr("setDevice");
    } else {
        return;
    }
    if (PyLong_AsLong(before_.ptr()) == device.id) return;
    set_device(device.id);
    set_device_ = std::move(set_device);
}

CurrentDevice::~CurrentDevice() {
    if (!set_device_.is_valid()) return;
    const nb::error_scope pending;
    PyObject* const result = PyObject_CallFunctionObjArgs(set_device_.ptr(), before_.ptr(), nullptr);
    if (result == nullptr) PyErr_Clear();
    Py_XDECREF(result);
}

nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& like_view,
                      const foveal_tensor& view, bool dtype_of_like) {
    switch (type.framework) {
        case Framework::torch:
            return new_torch_tensor(like, device, like_view, view, dtype_of_like);
        case Framework::numpy:
        case Framework::cupy: {
            const nb::object module = imported(type.framework == Framework::numpy ? "numpy" : "cupy");
            const nb::object dtype =
                dtype_of_like ? nb::object(nb::handle(like).attr("dtype")) : nb::object(nb::str("float32"));
            return module.attr("empty")(shape_of(view), dtype);
        }
        case Framework::jax:
            if (device.type == dlpack::kCpu) return new_host_buffer(view);
            raise(FOVEAL_UNSUPPORTED,
                  "q is a JAX array on a GPU; foveal supports those on the CPU: XLA has no current "
                  "stream, and its arrays cannot be written to");
        default:
            refuse("out is absent; foveal can allocate a result for PyTorch, NumPy, CuPy and JAX, and q is a " +
                   string_of(nb::type_name(nb::handle(reinterpret_cast<PyObject*>(type.type)))));
    }
}

void fill(const TensorType& type, nb::handle tensor, float value) {
    if (type.framework != Framework::jax) {
        tensor.attr(type.framework == Framework::torch ? "fill_" : "fill")(value);
        return;
    }
    const nb::ndarray<>& array = nb::cast<HostBuffer&>(tensor).array;
    if (value == 0)
        std::memset(array.data(), 0, array.nbytes());
    else
        std::fill_n(static_cast<float*>(array.data()), array.size(), value);
}

nb::object returned_form(const TensorType& type, nb::object tensor) {
    if (type.framework != Framework::jax) return tensor;
    return nb::module_::import_("jax.dlpack").attr("from_dlpack")(tensor);
}

void refuse_gradient(const TensorType& type, PyObject* object, const char* name) {
    if (type.framework != Framework::torch) return;
    static PyObject* const requires_grad = interned("requires_grad");
    if (attribute(object, requires_grad).ptr() != Py_True || call(Torch::get().is_grad_enabled).ptr() != Py_True)
        return;
    raise(FOVEAL_UNSUPPORTED, std::string(name) +
                                  " requires a gradient, and foveal has no backward yet: detach() it, or call under "
                                  "torch.no_grad() or torch.inference_mode()");
}

}  // namespace foveal::python
