#include "errors.hpp"

#include "library.hpp"

namespace foveal::python {
namespace {

PyObject* error = nullptr;
PyObject* invalid_argument = nullptr;
PyObject* unsupported = nullptr;
PyObject* no_device = nullptr;
PyObject* cuda_error = nullptr;
PyObject* out_of_memory = nullptr;

PyObject* define(nb::module_& module, const char* name, const char* doc, PyObject* base, PyObject* second = nullptr) {
    const nb::object bases =
        second == nullptr ? nb::borrow(base) : nb::make_tuple(nb::handle(base), nb::handle(second));
    PyObject* const type =
        PyErr_NewExceptionWithDoc((std::string("foveal.") + name).c_str(), doc, bases.ptr(), nullptr);
    if (type == nullptr) rethrow();
    module.attr(name) = nb::handle(type);
    return type;
}

PyObject* type_of(foveal_status status) {
    switch (status) {
        case FOVEAL_INVALID_ARGUMENT:
            return invalid_argument;
        case FOVEAL_UNSUPPORTED:
            return unsupported;
        case FOVEAL_NO_DEVICE:
            return no_device;
        case FOVEAL_CUDA_ERROR:
            return cuda_error;
        case FOVEAL_OUT_OF_MEMORY:
            return out_of_memory;
        default:
            return error;
    }
}

}  // namespace

void define_errors(nb::module_& module) {
    error = define(module, "Error", "What foveal raises; the message names the argument.", PyExc_RuntimeError);
    invalid_argument =
        define(module, "InvalidArgument", "Not a well-formed problem, whatever the backend.", error, PyExc_ValueError);
    unsupported = define(module, "UnsupportedError", "Well-formed, but the backend cannot do it exactly.", error,
                         PyExc_NotImplementedError);
    no_device = define(module, "NoDeviceError", "No Hopper GPU, no driver, or a build without CUDA.", error);
    cuda_error = define(module, "CudaError", "The CUDA driver refused; the message carries its reason.", error);
    out_of_memory = define(module, "OutOfMemoryError", "No host memory is left.", error, PyExc_MemoryError);
}

void raise(foveal_status status, const std::string& message) {
    PyErr_SetString(type_of(status), message.c_str());
    rethrow();
}

void raise_type_error(const std::string& message) {
    PyErr_SetString(PyExc_TypeError, message.c_str());
    rethrow();
}

void check(foveal_status status) {
    if (status != FOVEAL_OK) raise(status, library.last_error());
}

std::string string_of(nb::handle object) {
    const nb::object text = nb::steal(PyObject_Str(object.ptr()));
    if (!text.is_valid()) rethrow();
    // What is no valid Unicode, such as a lone surrogate, is spelt out.
    const nb::object bytes = nb::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
    const char* const utf8 = bytes.is_valid() ? PyBytes_AsString(bytes.ptr()) : nullptr;
    if (utf8 == nullptr) rethrow();
    return utf8;
}

std::string type_name_of(nb::handle object) {
    return string_of(nb::type_name(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())))));
}

std::string reason_of(const nb::python_error& raised) {
    const std::string text = string_of(raised.value());
    return text.empty() ? type_name_of(raised.value()) : text.substr(0, text.find('\n'));
}

}  // namespace foveal::python
