// Values of one element type as another.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_tool {

// f32, bf16 and f16: exact where the other type holds the value, else rounded once, to nearest, ties to even; what is
// too large becomes infinite.
std::vector<std::byte> converted(std::span<const std::byte> values, foveal_dtype from, foveal_dtype to);

}  // namespace foveal_tool
