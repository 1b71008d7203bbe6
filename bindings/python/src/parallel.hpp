// foveal.parallel's part of the extension.
#pragma once

#include <nanobind/nanobind.h>

namespace foveal::python {

void define_parallel(nanobind::module_& module);

}  // namespace foveal::python
