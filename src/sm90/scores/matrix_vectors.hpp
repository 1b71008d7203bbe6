// How a bias and a boolean mask are read: in vectors, neighbours that are read at once. Host and device share it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// Elements of a vector.
FOVEAL_HOST_DEVICE constexpr int32_t vector_elements(size_t element_bytes) {
    return element_bytes == 1 ? 4 : element_bytes == 2 ? 8 : 2;
}

// Do the rows of a matrix, of so many columns, consist of whole vectors, if its first element is aligned to one?
inline bool has_whole_vectors(const Strides& strides, int64_t columns, size_t element_bytes) {
    return (strides.batch | strides.row | strides.head | columns) % vector_elements(element_bytes) == 0;
}

}  // namespace foveal::sm90
