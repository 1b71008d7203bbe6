// foveal's Python exceptions.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "foveal/foveal.h"

namespace foveal::python {

namespace nb = nanobind;

// Defines foveal.Error and its kinds in `module`.
void define_errors(nb::module_& module);

// Raises the Python exception that stands for `status`.
[[noreturn]] void raise(foveal_status status, const std::string& message);
[[noreturn]] void raise_type_error(const std::string& message);
[[noreturn]] inline void refuse(const std::string& message) { raise(FOVEAL_INVALID_ARGUMENT, message); }

// Raises if a function of the library returned other than FOVEAL_OK, with the library's message.
void check(foveal_status status);

// str(object), and the name of its type.
std::string string_of(nb::handle object);
std::string type_name_of(nb::handle object);

// The first line of an error's message.
std::string reason_of(const nb::python_error& raised);

// The Python error that is set, as a C++ exception.
[[noreturn]] inline void rethrow() { throw nb::python_error(); }

}  // namespace foveal::python
