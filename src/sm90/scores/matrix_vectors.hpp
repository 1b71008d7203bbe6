// How a bias and a boolean mask are read: in groups of neighbours. Host and device share it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// Elements that are read at once.
FOVEAL_HOST_DEVICE constexpr int32_t score_group(size_t element_bytes) {
    return element_bytes == 1 ? 4 : element_bytes == 2 ? 8 : 2;
}

// Do the rows of a matrix, of so many columns, consist of whole groups, if its first element is aligned to one?
inline bool has_whole_groups(const Strides& strides, int64_t columns, size_t element_bytes) {
    return (strides.batch | strides.row | strides.head | columns) % score_group(element_bytes) == 0;
}

}  // namespace foveal::sm90
