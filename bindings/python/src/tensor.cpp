#include "tensor.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace foveal::python {
namespace {

constexpr struct {
    dlpack::DataType form;
    foveal_dtype dtype;
    std::string_view name;
} kDtypes[] = {
    {{dlpack::kBfloat, 16, 1}, FOVEAL_BF16, "bfloat16"}, {{dlpack::kFloat, 16, 1}, FOVEAL_F16, "float16"},
    {{dlpack::kFloat, 32, 1}, FOVEAL_F32, "float32"},    {{dlpack::kInt, 32, 1}, FOVEAL_I32, "int32"},
    {{dlpack::kBool, 8, 1}, FOVEAL_BOOL, "bool"},
};
constexpr const char* kDtypeNames = "bfloat16, float16, float32, int32 and bool";

std::string text_of(dlpack::DataType form) {
    const char* const kind = form.code == dlpack::kInt      ? "int"
                             : form.code == dlpack::kUInt   ? "uint"
                             : form.code == dlpack::kFloat  ? "float"
                             : form.code == dlpack::kBfloat ? "bfloat"
                                                            : nullptr;
    const std::string bits = std::to_string(form.bits) + (form.lanes == 1 ? "" : "x" + std::to_string(form.lanes));
    return kind != nullptr ? kind + bits : "of DLPack's type code " + std::to_string(form.code) + ", " + bits + " bits";
}

foveal_dtype dtype_of(dlpack::DataType form, const char* name) {
    for (const auto& known : kDtypes)
        if (known.form.code == form.code && known.form.bits == form.bits && known.form.lanes == form.lanes)
            return known.dtype;
    refuse(std::string(name) + ".dtype is " + text_of(form) + "; known are " + kDtypeNames);
}

std::string type_name(PyObject* object) {
    return string_of(nb::type_name(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object)))));
}

void require_rank(int64_t rank, const char* name) {
    if (rank > FOVEAL_MAX_RANK)
        refuse(std::string(name) + " has rank " + std::to_string(rank) + "; at most " +
               std::to_string(FOVEAL_MAX_RANK) + " is known");
    if (rank == 0) refuse(std::string(name) + " is a scalar; a tensor is needed");
}

// NumPy exports no bfloat16: ml_dtypes' arrays go as integers of the same size.
bool is_numpy_bfloat16(const TensorType& type, PyObject* object) {
    if (type.framework != Framework::numpy) return false;
    return string_of(nb::handle(object).attr("dtype")) == "bfloat16";
}

// The capsule of __dlpack__(), versioned if the library knows how. The producer makes `stream` wait for the tensor.
nb::object capsule_of(nb::handle object, const TensorType& type, dlpack::Device device) {
    nb::dict options;
    if (device.type == dlpack::kCuda) {
        // -1: do not wait; the tensor's own stream is used. 1: CUDA's legacy default stream.
        constexpr int64_t kNoWait = -1, kLegacyDefault = 1;
        int64_t stream = kLegacyDefault;
        if (type.framework == Framework::torch) stream = kNoWait;
        if (type.framework == Framework::cupy) {
            stream = reinterpret_cast<int64_t>(current_stream(type, device));
            if (stream == 0) stream = kLegacyDefault;
        }
        options["stream"] = stream;
    }
    const nb::object export_tensor = object.attr("__dlpack__");
    if (type.framework != Framework::torch) {
        options["max_version"] = nb::make_tuple(1, 0);
        try {
            return export_tensor(**options);
        } catch (const nb::python_error& error) {
            if (!error.matches(PyExc_TypeError)) throw;
        }
        PyDict_DelItemString(options.ptr(), "max_version");
    }
    return export_tensor(**options);
}

}  // namespace

bool is_packed(const foveal_tensor& view) {
    int64_t stride = 1;
    for (int32_t i = view.rank - 1; i >= 0; --i) {
        if (view.shape[i] > 1 && view.stride[i] != stride) return false;
        stride *= view.shape[i];
    }
    return true;
}

void pack_strides(foveal_tensor& view) {
    int64_t stride = 1;
    for (int32_t i = view.rank - 1; i >= 0; --i) {
        view.stride[i] = stride;
        stride *= std::max<int64_t>(view.shape[i], 1);
    }
}

Borrowed::Borrowed(PyObject* object, const char* name, Form form) {
    if (form == Form::description && PyTuple_Check(object)) {
        describe(object, name);
        return;
    }
    type = &tensor_type_of(object);
    if (type->exchange == nullptr) {
        borrow_through_capsule(object, name);
        return;
    }
    dlpack::Tensor tensor{};
    if (type->exchange->borrow_from_object(object, &tensor) != 0) rethrow();
    take(tensor, name);
}

void Borrowed::borrow_through_capsule(PyObject* object, const char* name) {
    const nb::handle tensor(object);
    if (!nb::hasattr(tensor, "__dlpack__"))
        raise_type_error(std::string(name) + " is of type " + type_name(object) +
                         "; a tensor is needed (PyTorch, NumPy, CuPy, JAX, or another that speaks DLPack)");
    const nb::tuple place = nb::borrow<nb::tuple>(tensor.attr("__dlpack_device__")());
    const dlpack::Device at{nb::cast<int32_t>(nb::int_(place[0])), nb::cast<int32_t>(place[1])};
    const bool numpy_bfloat16 = is_numpy_bfloat16(*type, object);
    capsule_ = capsule_of(numpy_bfloat16 ? tensor.attr("view")("uint16") : nb::borrow(tensor), *type, at);
    dlpack::Tensor exported;
    if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned") != 0) {
        const auto* const managed =
            static_cast<dlpack::VersionedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
        if (managed->version.major != dlpack::kMajorVersion)
            refuse(std::string(name) + " comes as DLPack version " + std::to_string(managed->version.major) +
                   "; version 1 is known");
        read_only = (managed->flags & dlpack::kReadOnly) != 0;
        exported = managed->tensor;
    } else {
        const auto* const managed =
            static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
        if (managed == nullptr) rethrow();
        exported = managed->tensor;
    }
    if (numpy_bfloat16) exported.dtype = {dlpack::kBfloat, 16, 1};
    take(exported, name);
}

void Borrowed::take(const dlpack::Tensor& tensor, const char* name) {
    require_rank(tensor.rank, name);
    device = tensor.device;
    if (device.type == dlpack::kCudaManaged) device.type = dlpack::kCuda;
    if (device.type == dlpack::kCudaHost) device = {dlpack::kCpu, 0};
    if (device.type != dlpack::kCpu && device.type != dlpack::kCuda)
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " is on a device of DLPack's type " +
                                      std::to_string(device.type) +
                                      "; foveal has backends for the CPU (1) and CUDA (2)");
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.dtype = dtype_of(tensor.dtype, name);
    view.rank = tensor.rank;
    std::copy_n(tensor.shape, view.rank, view.shape);
    const bool empty = std::find(view.shape, view.shape + view.rank, 0) != view.shape + view.rank;
    if (tensor.strides != nullptr && !empty) {  // without elements, libraries write strides as they like
        std::copy_n(tensor.strides, view.rank, view.stride);
    } else {
        pack_strides(view);
    }
}

void Borrowed::describe(PyObject* object, const char* name) {
    const char* const expected =
        " is a tuple; as a description it must be (shape, dtype), such as ((1, 4096, 32, 128), "
        "\"bfloat16\")";
    const nb::tuple pair = nb::borrow<nb::tuple>(object);
    if (nb::len(pair) != 2 || PySequence_Check(pair[0].ptr()) == 0) raise_type_error(name + std::string(expected));
    const nb::object shape = nb::borrow(pair[0]);
    require_rank(static_cast<int64_t>(nb::len(shape)), name);
    view.rank = static_cast<int32_t>(nb::len(shape));
    for (int32_t i = 0; i < view.rank; ++i) view.shape[i] = nb::cast<int64_t>(shape[i]);
    pack_strides(view);
    std::string dtype = string_of(pair[1]);
    if (dtype.starts_with("torch.")) dtype = dtype.substr(6);
    for (const auto& known : kDtypes)
        if (known.name == dtype) view.dtype = known.dtype;
    if (view.dtype == 0) refuse(std::string(name) + ".dtype is " + dtype + "; known are " + kDtypeNames);
}

}  // namespace foveal::python
