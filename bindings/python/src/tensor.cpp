#include "tensor.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "errors.hpp"
#include "torch.hpp"

namespace foveal::python {
namespace {

constexpr struct {
    dlpack::DataType form;
    foveal_dtype dtype;
    std::string_view name;
} kDtypes[] = {
    {{dlpack::kBfloat, 16, 1}, FOVEAL_BF16, "bfloat16"}, {{dlpack::kFloat, 16, 1}, FOVEAL_F16, "float16"},
    {{dlpack::kFloat, 32, 1}, FOVEAL_F32, "float32"},    {{dlpack::kInt, 32, 1}, FOVEAL_I32, "int32"},
    {{dlpack::kBool, 8, 1}, FOVEAL_BOOL, "bool"},        {{dlpack::kInt, 64, 1}, FOVEAL_I64, "int64"},
    {{dlpack::kUInt, 32, 1}, FOVEAL_U32, "uint32"},      {{dlpack::kFloat8E4M3FN, 8, 1}, FOVEAL_E4M3, "float8_e4m3fn"},
    {{dlpack::kUInt, 64, 1}, FOVEAL_I64, "uint64"},  // of dropout, whose 64 bits are 64 bits
};
constexpr dlpack::DataType kUInt8{dlpack::kUInt, 8, 1};

// May an argument be in e4m3?
bool may_be_e4m3(std::string_view name) {
    return name == "q" || name == "k" || name == "v" || name == "k_cache" || name == "v_cache";
}

// What an argument's elements may be. What goes together with which, the library says.
const char* dtypes_of(std::string_view name) {
    if (name.starts_with("seqused_") || name.starts_with("cu_seqlens") || name == "cache_lengths" ||
        name == "page_indptr" || name == "query_offset")
        return "int32";
    if (name == "slot_mapping") return "int64";
    if (name == "dropout_state") return "int64 and uint64";
    if (name == "positions" || name == "pairs") return "int32 and int64";
    if (name == "block_table" || name == "page_indices" || name == "tree_mask") return "int32 and uint32";
    if (name.starts_with("lse") || name == "sinks" || name == "alibi_slopes" || name.ends_with("_scale") ||
        name.ends_with("_scale_out") || name.ends_with("_descale"))
        return "float32";
    if (may_be_e4m3(name)) return "bfloat16, float16, float32 and float8_e4m3fn";
    return name == "mask" ? "bool" : "bfloat16, float16 and float32";
}

std::string text_of(dlpack::DataType form) {
    constexpr std::array<std::string_view, 18> kKinds{"int",
                                                      "uint",
                                                      "float",
                                                      "opaque",
                                                      "bfloat",
                                                      "complex",
                                                      "bool",
                                                      "float8_e3m4",
                                                      "float8_e4m3",
                                                      "float8_e4m3b11fnuz",
                                                      "float8_e4m3fn",
                                                      "float8_e4m3fnuz",
                                                      "float8_e5m2",
                                                      "float8_e5m2fnuz",
                                                      "float8_e8m0fnu",
                                                      "float6_e2m3fn",
                                                      "float6_e3m2fn",
                                                      "float4_e2m1fn"};
    const std::string lanes = form.lanes == 1 ? "" : "x" + std::to_string(form.lanes);
    if (form.code >= kKinds.size())
        return "of DLPack's type code " + std::to_string(form.code) + ", " + std::to_string(form.bits) + " bits" +
               lanes;
    const bool says_bits = form.code >= dlpack::kBool;
    return std::string(kKinds[form.code]) + (says_bits ? "" : std::to_string(form.bits)) + lanes;
}

[[noreturn]] void refuse_dtype(const char* name, const std::string& dtype, Bytes bytes) {
    const bool may_say_so = dtype == "uint8" && may_be_e4m3(name) && bytes != Bytes::not_asked;
    refuse(std::string(name) + ".dtype is " + dtype + "; foveal takes " + dtypes_of(name) + " there" +
           (may_say_so ? ", or uint8 with uint8_as=\"float8_e4m3fn\"" : ""));
}

bool is_same(dlpack::DataType a, dlpack::DataType b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

foveal_dtype dtype_of(dlpack::DataType form, const char* name, Bytes bytes) {
    if (is_same(form, kUInt8) && bytes == Bytes::e4m3 && may_be_e4m3(name)) return FOVEAL_E4M3;
    for (const auto& known : kDtypes) {
        if (!is_same(known.form, form)) continue;
        const bool is_of_few =  // arguments
            known.dtype == FOVEAL_I64 || known.dtype == FOVEAL_U32 || known.dtype == FOVEAL_E4M3 ||
            std::string_view(name) == "dropout_state";
        if (!is_of_few || std::string_view(dtypes_of(name)).find(known.name) != std::string_view::npos)
            return known.dtype;
    }
    refuse_dtype(name, text_of(form), bytes);
}

void require_rank(int64_t rank, const char* name) {
    if (rank > FOVEAL_MAX_RANK)
        refuse(std::string(name) + " has rank " + std::to_string(rank) + "; at most " +
               std::to_string(FOVEAL_MAX_RANK) + " is known");
    if (rank <= 0) refuse(std::string(name) + " is a scalar; a tensor is needed");
}

// NumPy exports no bfloat16 and no e4m3: ml_dtypes' arrays go as integers of the same size. Null: not one of those.
struct ExtensionType {
    std::string_view name;
    const char* exported_as;
    dlpack::DataType form;
};
const ExtensionType* extension_type_of(const TensorType& type, PyObject* object) {
    static constexpr ExtensionType kTypes[] = {{"bfloat16", "uint16", {dlpack::kBfloat, 16, 1}},
                                               {"float8_e4m3fn", "uint8", {dlpack::kFloat8E4M3FN, 8, 1}}};
    if (type.framework != Framework::numpy) return nullptr;
    const std::string dtype = string_of(nb::handle(object).attr("dtype"));
    for (const ExtensionType& known : kTypes)
        if (known.name == dtype) return &known;
    return nullptr;
}

// A masked array's mask is nothing that DLPack would carry.
void refuse_masked(const TensorType& type, PyObject* object, const char* name) {
    if (type.framework == Framework::numpy && type.kind == Kind::overrides)
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " is a " + type_name_of(object) +
                                      "; foveal would not see its mask: pass filled(), and `mask` or `seqused_k`");
}

// Of __dlpack_device__(): it may come from anywhere.
dlpack::Device device_of(nb::handle object, const char* name) {
    const nb::object place = object.attr("__dlpack_device__")();
    const std::string call = std::string(name) + ".__dlpack_device__()";
    if (!PyTuple_Check(place.ptr()) || nb::len(place) != 2)
        raise_type_error(call + " is " + string_of(nb::repr(place)) + "; it must be a tuple (device type, device id)");
    const auto number = [&](size_t i) {
        const int64_t wide = integer(nb::object(place[i]), (call + "[" + std::to_string(i) + "]").c_str());
        if (wide != static_cast<int32_t>(wide))
            refuse(call + " is " + string_of(nb::repr(place)) + ", of over 32 bits");
        return static_cast<int32_t>(wide);
    };
    return {number(0), number(1)};
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

Bytes bytes_of(nb::handle uint8_as) {
    if (!uint8_as.is_valid()) return Bytes::not_asked;
    if (uint8_as.is_none()) return Bytes::unknown;
    if (PyUnicode_Check(uint8_as.ptr()) && string_of(uint8_as) == "float8_e4m3fn") return Bytes::e4m3;
    refuse("uint8_as is " + string_of(nb::repr(uint8_as)) + "; known is \"float8_e4m3fn\", or None");
}

Borrowed::Borrowed(PyObject* object, const char* name, Form form, Bytes bytes) : bytes_(bytes) {
    if (form == Form::description && PyTuple_Check(object)) {
        describe_pair(nb::borrow<nb::tuple>(object), name, view, bytes);
        return;
    }
    type = tensor_type_of(object);
    if (type.framework == Framework::torch) {
        borrow_from_torch(object, name, form);
    } else {
        borrow_through_capsule(object, name, form);
    }
}

void Borrowed::borrow_from_torch(PyObject* object, const char* name, Form form) {
    std::string reason;
    if (type.kind != Kind::overrides || form == Form::dispatched) {
        if (type.exchange == nullptr) return borrow_through_capsule(object, name, form);
        dlpack::Tensor tensor{};
        if (type.exchange->borrow_from_object(object, &tensor) == 0) {
            if (form == Form::description) torch::refuse_negative(object, name);
            return take(tensor, name);
        }
        reason = reason_of(nb::python_error());
    }
    if (reason.empty()) reason = "its type has functions of its own";
    torch::refuse_unreadable(object, name);
    if (form != Form::description)
        throw Unreadable{
            name, std::string(name) + " (" + type_name_of(object) + ") has no memory that foveal can read: " + reason};
    if (!torch::describe(object, name, view, device, bytes_)) type = {};
}

void Borrowed::borrow_through_capsule(PyObject* object, const char* name, Form form) {
    const nb::handle tensor(object);
    if (!nb::hasattr(tensor, "__dlpack__"))
        raise_type_error(std::string(name) + " is of type " + type_name_of(object) +
                         "; a tensor is needed (PyTorch, NumPy, CuPy, JAX, or another that speaks DLPack)" +
                         (form == Form::description ? ", or a tuple (shape, dtype)" : ""));
    refuse_masked(type, object, name);
    const ExtensionType* const extension = extension_type_of(type, object);
    try {
        const dlpack::Device at = device_of(tensor, name);
        capsule_ = capsule_of(extension != nullptr ? tensor.attr("view")(extension->exported_as) : nb::borrow(tensor),
                              type, at);
    } catch (nb::python_error& error) {
        if (error.matches(PyExc_MemoryError) || !error.matches(PyExc_Exception)) throw;
        if (reason_of(error).starts_with(name)) throw;
        refuse(std::string(name) + " (" + type_name_of(object) +
               ") cannot be read through DLPack: " + reason_of(error));
    }
    dlpack::Tensor tensor_there = exported(name);
    if (extension != nullptr) tensor_there.dtype = extension->form;
    take(tensor_there, name);
}

// What the capsule holds.
dlpack::Tensor Borrowed::exported(const char* name) {
    PyObject* const capsule = capsule_.ptr();
    if (PyCapsule_IsValid(capsule, "dltensor") != 0)
        return static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"))->tensor;
    if (PyCapsule_IsValid(capsule, "dltensor_versioned") == 0)
        raise_type_error(std::string(name) + ".__dlpack__() is " + string_of(nb::repr(capsule_)) +
                         "; it must be a capsule named dltensor or dltensor_versioned");
    const auto* const managed =
        static_cast<dlpack::VersionedTensor*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    if (managed->version.major != dlpack::kMajorVersion)
        refuse(std::string(name) + " comes as DLPack version " + std::to_string(managed->version.major) +
               "; version 1 is known");
    read_only = (managed->flags & dlpack::kReadOnly) != 0;
    return managed->tensor;
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
    view.dtype = dtype_of(tensor.dtype, name, bytes_);
    view.rank = tensor.rank;
    std::copy_n(tensor.shape, view.rank, view.shape);
    const bool empty = std::find(view.shape, view.shape + view.rank, 0) != view.shape + view.rank;
    if (tensor.strides != nullptr && !empty) {  // without elements, libraries write strides as they like
        std::copy_n(tensor.strides, view.rank, view.stride);
    } else {
        pack_strides(view);
    }
}

void describe_pair(nb::tuple pair, const char* name, foveal_tensor& view, Bytes bytes) {
    if (nb::len(pair) != 2 || PySequence_Check(pair[0].ptr()) == 0)
        raise_type_error(name + std::string(" is a tuple; as a description it must be (shape, dtype), such as "
                                            "((1, 4096, 32, 128), \"bfloat16\")"));
    const nb::object shape = nb::borrow(pair[0]);
    require_rank(static_cast<int64_t>(nb::len(shape)), name);
    view.rank = static_cast<int32_t>(nb::len(shape));
    for (int32_t i = 0; i < view.rank; ++i) {
        const std::string dimension = std::string(name) + ".shape[" + std::to_string(i) + "]";
        view.shape[i] = integer(nb::object(shape[i]), dimension.c_str());
    }
    pack_strides(view);
    std::string dtype = string_of(PyType_Check(pair[1].ptr()) ? pair[1].attr("__name__") : nb::object(pair[1]));
    if (dtype.starts_with("torch.")) dtype = dtype.substr(6);
    if (dtype == "uint8" && bytes == Bytes::e4m3 && may_be_e4m3(name)) dtype = "float8_e4m3fn";
    for (const auto& known : kDtypes)
        if (known.name == dtype) view.dtype = known.dtype;
    if (view.dtype == 0) refuse_dtype(name, dtype, bytes);
}

int64_t integer(nb::handle value, const char* name) {
    const nb::object index = nb::steal(PyNumber_Index(value.ptr()));
    const int64_t result = index.is_valid() ? PyLong_AsLongLong(index.ptr()) : -1;
    if (result != -1 || PyErr_Occurred() == nullptr) return result;
    PyErr_Clear();
    raise_type_error(std::string(name) + " is " + string_of(nb::repr(value)) + "; it must be an integer of 64 bits");
}

}  // namespace foveal::python
