#include "framework.hpp"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <string>

#include "errors.hpp"
#include "tensor.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

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

nb::object shape_of(const foveal_tensor& view) {
    nb::list shape;
    for (int32_t i = 0; i < view.rank; ++i) shape.append(view.shape[i]);
    return nb::tuple(shape);
}

// NumPy's own types have none.
nb::object numpy_bfloat16() {
    try {
        return nb::module_::import_("ml_dtypes").attr("bfloat16");
    } catch (nb::python_error& error) {
        if (!error.matches(PyExc_ImportError)) throw;
    }
    raise(
        FOVEAL_UNSUPPORTED,
        "out is absent, and bfloat16, which it is of q in float8_e4m3fn, is a type of ml_dtypes in NumPy, which is not "
        "installed; give out, of float16");
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
    for (size_t i = 0; i < static_cast<size_t>(view.rank); ++i)
        elements *= shape[i] = static_cast<size_t>(view.shape[i]);
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

TensorType tensor_type_of(PyObject* object) {
    constexpr size_t kTypes = 16;  // as many as a program uses; looking at one again is slow, and no more
    static std::array<TensorType, kTypes> known{};
    static size_t next = 0;
    PyTypeObject* const type = Py_TYPE(object);
    for (const TensorType& entry : known)
        if (entry.type == type) return entry;
    TensorType found{type, framework_of(object), Kind::tensor, exchange_api_of(type)};
    if (found.framework == Framework::torch) found.kind = torch::kind_of(type);
    if (found.framework == Framework::numpy && nb::hasattr(nb::handle(reinterpret_cast<PyObject*>(type)), "mask"))
        found.kind = Kind::overrides;
    TensorType& entry = known[next];
    next = (next + 1) % kTypes;
    Py_IncRef(reinterpret_cast<PyObject*>(type));
    PyTypeObject* const before = entry.type;
    entry = found;
    Py_DecRef(reinterpret_cast<PyObject*>(before));
    return found;
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
        stream = torch::current_stream(device);
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
        before_ = torch::current_device();
        set_device = torch::set_device();
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

nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& view,
                      bool dtype_of_like) {
    switch (type.framework) {
        case Framework::torch:
            return torch::new_tensor(type, like, device, view);
        case Framework::numpy:
        case Framework::cupy: {
            const nb::object module = imported(type.framework == Framework::numpy ? "numpy" : "cupy");
            const nb::object dtype = dtype_of_like               ? nb::object(nb::handle(like).attr("dtype"))
                                     : view.dtype == FOVEAL_BF16 ? numpy_bfloat16()
                                                                 : nb::object(nb::str("float32"));
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

}  // namespace foveal::python
