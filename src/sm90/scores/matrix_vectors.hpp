// A bias and a boolean mask are read in vectors: as many neighbours as one load brings. Host and device share this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// Elements of a vector.
FOVEAL_HOST_DEVICE constexpr int32_t vector_elements(size_t element_bytes) {
    return element_bytes == 1 ? 4 : element_bytes == 2 ? 8 : 2;
}

// Whether every row of a matrix of so many columns consists of whole vectors, if the first element is aligned to one.
inline bool has_whole_vectors(const ScoreStrides& strides, int64_t columns, size_t element_bytes) {
    return strides.key == 1 &&
           (strides.batch | strides.row | strides.head | columns) % vector_elements(element_bytes) == 0;
}

}  // namespace foveal::sm90
