#include "torch.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <string>

#include "errors.hpp"
#include "library.hpp"
#include "tensor.hpp"

namespace foveal::python::torch {
namespace {

// On the CPU PyTorch's threads are OpenMP's, which look for work for milliseconds after each of its operators: the
// library's own would share the CPUs with them. libtorch_cpu leads to the OpenMP that it is linked with, if it is.
void use_threads_of_torch() {
    void* const torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
    void* const parallel = torch == nullptr ? nullptr : dlsym(torch, "GOMP_parallel");
    if (parallel != nullptr) use_openmp(parallel);
}

// Functions of torch that every call needs. torch is imported: one of its tensors is here. Never released.
struct Torch {
    PyObject* tensor_type;
    PyObject* parameter_type;
    PyObject* bfloat16;
    PyObject* float16;
    PyObject* float32;
    PyObject* is_grad_enabled;
    PyObject* dispatch_modes;     // how many TorchDispatchModes are active
    PyObject* is_tracing;         // torch.jit.trace
    PyObject* forward_ad;         // the namespace of torch.autograd.forward_ad
    PyObject* increment_version;  // (tensors)
    PyObject* is_inference_mode;
    PyObject* is_transformed;        // null where this PyTorch has none
    PyObject* empty_strided_cpu;     // null where this PyTorch has none
    PyObject* empty_strided_cuda;    // likewise
    PyObject* tensor_guards;         // likewise
    PyObject* get_device = nullptr;  // null where torch has no CUDA
    PyObject* set_device = nullptr;
    PyObject* current_raw_stream = nullptr;

    static const Torch& get() {
        static const Torch torch;
        return torch;
    }

   private:
    static PyObject* kept(nb::handle owner, const char* name) { return nb::object(owner.attr(name)).release().ptr(); }
    static PyObject* kept_if_there(nb::handle owner, const char* name) {
        return nb::hasattr(owner, name) ? kept(owner, name) : nullptr;
    }

    Torch() {
        const nb::object module = nb::module_::import_("torch"), c = module.attr("_C");
        tensor_type = kept(module, "Tensor");
        parameter_type = kept(module.attr("nn"), "Parameter");
        bfloat16 = kept(module, "bfloat16");
        float16 = kept(module, "float16");
        float32 = kept(module, "float32");
        is_grad_enabled = kept(module, "is_grad_enabled");
        dispatch_modes = kept(c, "_len_torch_dispatch_stack");
        is_tracing = kept(c, "_is_tracing");
        forward_ad = kept(nb::module_::import_("torch.autograd.forward_ad"), "__dict__");
        increment_version = kept(c, "_increment_version");
        is_inference_mode = kept(module, "is_inference_mode_enabled");
        is_transformed = kept_if_there(c, "_are_functorch_transforms_active");
        const nb::object compiled = nb::getattr(nb::getattr(c, "_dynamo", nb::none()), "guards", nb::none());
        empty_strided_cpu = kept_if_there(compiled, "_empty_strided_cpu");
        empty_strided_cuda = kept_if_there(compiled, "_empty_strided_cuda");
        tensor_guards = kept_if_there(compiled, "TensorGuards");
        use_threads_of_torch();
        if (!nb::hasattr(c, "_cuda_getCurrentRawStream")) return;
        get_device = kept(c, "_cuda_getDevice");
        set_device = kept(c, "_cuda_setDevice");
        current_raw_stream = kept(c, "_cuda_getCurrentRawStream");
    }
};

// A string that Python has interned: attribute look-ups with it compare pointers.
PyObject* interned(const char* text) {
    PyObject* const string = PyUnicode_InternFromString(text);
    if (string == nullptr) rethrow();
    return string;
}

nb::object owned(PyObject* object) {
    if (object == nullptr) rethrow();
    return nb::steal(object);
}

bool is_true(PyObject* function) { return owned(PyObject_CallNoArgs(function)).ptr() == Py_True; }

// Of a method without arguments.
nb::object call_method(PyObject* object, PyObject* method) {
    return owned(PyObject_VectorcallMethod(method, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

bool is_negative(PyObject* object) {
    static PyObject* const is_neg = interned("is_neg");
    return call_method(object, is_neg).ptr() == Py_True;
}

nb::tuple tuple_of(const int64_t* numbers, int32_t rank) {
    nb::object tuple = owned(PyTuple_New(rank));
    for (int32_t i = 0; i < rank; ++i) PyTuple_SetItem(tuple.ptr(), i, PyLong_FromLongLong(numbers[i]));
    return nb::borrow<nb::tuple>(tuple);
}

bool has_tangent(PyObject* object) {
    const nb::object unpack = nb::module_::import_("torch.autograd.forward_ad").attr("unpack_dual");
    return !nb::object(unpack(nb::handle(object)).attr("tangent")).is_none();
}

// What tensors looked like that have passed all checks: PyTorch's own guard over them, which compares type, dispatch
// keys (of the thread as well: a trace of torch.jit has one), dtype, device and requires_grad, and leaves sizes and
// strides free. It does not see make_fx, whose mode has none.
struct Familiar {
    MainTensors like;
    PyObject* check = nullptr;
    int times_made = 0;
};
constexpr size_t kFamiliar = 8;  // kinds of problems that a program alternates between
std::array<Familiar, kFamiliar> familiar;

Familiar* familiar_like(const MainTensors& tensors) {
    for (Familiar& entry : familiar)
        if (entry.check != nullptr && entry.like.looks_like(tensors)) return &entry;
    return nullptr;
}

constexpr const char* kNoDerivative = ", which foveal has none of here: detach() it";

}  // namespace

Kind kind_of(PyTypeObject* type) {
    const Torch& torch = Torch::get();
    const nb::handle self(reinterpret_cast<PyObject*>(type)), tensor(torch.tensor_type);
    if (self.is(tensor) || self.is(nb::handle(torch.parameter_type))) return Kind::tensor;
    const nb::handle parameter(torch.parameter_type);
    const nb::object function = self.attr("__torch_function__");
    const bool functions = function.is(nb::object(parameter.attr("__torch_function__"))) ||  // switched off
                           nb::getattr(function, "__func__", nb::none())
                               .is(nb::object(tensor.attr("__torch_function__").attr("__func__")));
    const bool dispatch = nb::object(self.attr("__torch_dispatch__")).is(nb::object(tensor.attr("__torch_dispatch__")));
    return functions && dispatch ? Kind::subclass : Kind::overrides;
}

bool calls_are_watched() {
    const Torch& torch = Torch::get();
    return PyLong_AsLong(owned(PyObject_CallNoArgs(torch.dispatch_modes)).ptr()) > 0 || is_true(torch.is_tracing);
}

bool is_transformed() {
    const Torch& torch = Torch::get();
    return torch.is_transformed == nullptr || is_true(torch.is_transformed);
}

bool are_familiar(const MainTensors& tensors) {
    const Familiar* const entry = familiar_like(tensors);
    if (entry == nullptr || tangents_may_be()) return false;
    if (PyLong_AsLong(owned(PyObject_CallNoArgs(Torch::get().dispatch_modes)).ptr()) != 0) return false;
    PyObject* const same = PyObject_Vectorcall(entry->check, tensors.objects(), tensors.count(), nullptr);
    if (same == nullptr) PyErr_Clear();
    Py_XDECREF(same);
    return same == Py_True;
}

void make_familiar(const MainTensors& tensors) {
    constexpr int kOften = 16;  // a program that changes thread states all the time gains nothing by it
    static size_t next = 0;
    static PyObject* const requires_grad = interned("requires_grad");  // may be so under torch.no_grad(), not always
    if (Torch::get().tensor_guards == nullptr) return;
    for (size_t i = 0; i < tensors.count(); ++i)
        if (owned(PyObject_GetAttr(tensors.objects()[i], requires_grad)).ptr() != Py_False) return;
    Familiar* entry = familiar_like(tensors);
    if (entry == nullptr) {
        entry = &familiar[next];
        next = (next + 1) % kFamiliar;
        entry->times_made = 0;
    }
    if (++entry->times_made > kOften) return;
    nb::list any, objects;
    for (size_t i = 0; i < tensors.count(); ++i) {
        nb::list any_of_one;
        for (int32_t dimension = 0; dimension < tensors.rank(i); ++dimension) any_of_one.append(nb::none());
        any.append(any_of_one);
        objects.append(nb::handle(tensors.objects()[i]));
    }
    try {
        const nb::object guards = nb::handle(Torch::get().tensor_guards)(
            *nb::tuple(objects), nb::arg("dynamic_dims_sizes") = any, nb::arg("dynamic_dims_strides") = any);
        PyObject* const before = entry->check;
        entry->check = nb::object(guards.attr("check")).release().ptr();
        entry->like = tensors;
        Py_XDECREF(before);
    } catch (const nb::python_error&) {  // PyTorch cannot: each check is made on its own
    }
}

bool tangents_may_be() {
    static PyObject* const level = interned("_current_level");
    PyObject* const current = PyDict_GetItemWithError(Torch::get().forward_ad, level);
    return current != nullptr && PyLong_AsLong(current) >= 0;
}

void refuse_negative(PyObject* object, const char* name) {
    if (is_negative(object))
        raise(FOVEAL_UNSUPPORTED, std::string(name) +
                                      " is a lazily negated view (is_neg() is True); foveal takes memory as it is: "
                                      "call resolve_neg() first");
}

void refuse_unreadable(PyObject* object, const char* name) {
    const nb::handle tensor(object);
    const std::string layout = string_of(tensor.attr("layout"));
    const bool nested = nb::cast<bool>(tensor.attr("is_nested"));
    if (nested || layout != "torch.strided")
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " is " + (nested ? "a nested tensor" : "of layout " + layout) +
                                      "; foveal takes strided tensors" +
                                      (nested ? ": attention_varlen() takes the values() and offsets() of one" : ""));
    if (nb::cast<bool>(tensor.attr("is_quantized")))
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " is quantized, of dtype " + string_of(tensor.attr("dtype")) +
                                      "; foveal takes none: call dequantize() first");
    refuse_negative(object, name);
}

bool records_gradient(PyObject* object) {
    static PyObject* const requires_grad = interned("requires_grad");
    return owned(PyObject_GetAttr(object, requires_grad)).ptr() == Py_True && is_true(Torch::get().is_grad_enabled);
}

void refuse_tangent(PyObject* object, const char* name, bool tangents) {
    if (tangents && has_tangent(object))
        raise(FOVEAL_UNSUPPORTED, std::string(name) +
                                      " has a tangent (it is a dual number of forward-mode AD), and foveal has no "
                                      "forward-mode derivative: detach() it");
}

void refuse_derivative(PyObject* object, const char* name, bool tangents) {
    if (records_gradient(object))
        raise(FOVEAL_UNSUPPORTED, std::string(name) + " requires a gradient" + kNoDerivative +
                                      ", or call under torch.no_grad() or torch.inference_mode()");
    refuse_tangent(object, name, tangents);
}

void refuse_uncounted(PyObject* object, const char* name) {
    static PyObject* const version = interned("_version");
    const nb::object before = nb::steal(PyObject_GetAttr(object, version));
    if (before.is_valid()) return;
    PyErr_Clear();  // a tensor of the inference mode: its writes are not counted
    if (!is_true(Torch::get().is_inference_mode))
        refuse(std::string(name) + " is a tensor of torch.inference_mode(); it cannot be written to outside of that");
}

void announce_writes(nb::handle tensors) {
    PyObject* const argument = tensors.ptr();
    owned(PyObject_Vectorcall(Torch::get().increment_version, &argument, 1, nullptr));
}

bool describe(PyObject* object, const char* name, foveal_tensor& view, dlpack::Device& device, Bytes bytes) {
    refuse_unreadable(object, name);
    const nb::handle tensor(object);
    const nb::object stride = tensor.attr("stride")();
    describe_pair(nb::make_tuple(tensor.attr("shape"), tensor.attr("dtype")), name, view, bytes);
    const std::string name_of_stride = std::string(name) + ".stride";
    for (int32_t i = 0; i < view.rank; ++i) view.stride[i] = integer(nb::object(stride[i]), name_of_stride.c_str());
    const nb::object place = tensor.attr("device"), index = place.attr("index");
    const std::string type = string_of(place.attr("type"));
    if (type == "meta") return false;
    if (type != "cpu" && type != "cuda")
        raise(FOVEAL_UNSUPPORTED,
              std::string(name) + " is on " + string_of(place) + "; foveal has backends for the CPU and CUDA");
    device = {type == "cuda" ? dlpack::kCuda : dlpack::kCpu,
              index.is_none() ? 0 : static_cast<int32_t>(integer(index, name))};
    return true;
}

nb::object new_tensor(const TensorType& type, PyObject* like, dlpack::Device device, const foveal_tensor& view) {
    const Torch& torch = Torch::get();
    PyObject* const dtype = view.dtype == FOVEAL_BF16  ? torch.bfloat16
                            : view.dtype == FOVEAL_F16 ? torch.float16
                                                       : torch.float32;
    // PyTorch's compiled code allocates so, past the dispatcher: 1.1 us in place of empty_like's 3.6 us on CUDA (H100's
    // host, PyTorch 2.11, 2026-11-25), half on the CPU.
    PyObject* const empty_strided = device.type == dlpack::kCuda ? torch.empty_strided_cuda : torch.empty_strided_cpu;
    const nb::tuple shape = tuple_of(view.shape, view.rank);
    if (empty_strided != nullptr && type.kind != Kind::subclass)
        return owned(PyObject_CallFunctionObjArgs(empty_strided, shape.ptr(), tuple_of(view.stride, view.rank).ptr(),
                                                  dtype, nullptr));
    return nb::handle(like).attr("new_empty")(shape, nb::arg("dtype") = nb::handle(dtype));
}

nb::object current_stream(dlpack::Device device) { return nb::handle(Torch::get().current_raw_stream)(device.id); }
nb::object current_device() { return owned(PyObject_CallNoArgs(Torch::get().get_device)); }
nb::object set_device() { return nb::borrow(Torch::get().set_device); }

nb::object drawn_dropout_state(PyObject* q) {
    return nb::module_::import_("foveal.torch").attr("_drawn_dropout_state")(nb::handle(q));
}

nb::object recorded(PyObject* const* arguments, size_t count) {
    static PyObject* record =
        nullptr;  // an import releases the GIL: no guarded initialisation, which would wait with it
    if (record == nullptr)
        record = nb::object(nb::module_::import_("foveal._torch_eager").attr("record")).release().ptr();
    return owned(PyObject_Vectorcall(record, arguments, count, nullptr));
}

nb::object through_dispatcher(const char* function, PyObject* const* arguments, size_t count) {
    const nb::object called = nb::module_::import_("foveal.torch").attr(function);
    return owned(PyObject_Vectorcall(called.ptr(), arguments, count, nullptr));
}

}  // namespace foveal::python::torch
