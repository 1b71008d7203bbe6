// Where the data of one sequence and K/V head lie, from those of a problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/sequences.hpp"
#include "cpu/tile.hpp"
#include "problem/dtype.hpp"
#include "problem/forward.hpp"
#include "problem/strides.hpp"

namespace foveal::cpu {

inline const void* advance(DType dtype, const void* tensor, int64_t elements) {
    return static_cast<const std::byte*>(tensor) + elements * bytes_of(dtype);
}

inline void* advance(DType dtype, void* tensor, int64_t elements) {
    return static_cast<std::byte*>(tensor) + elements * bytes_of(dtype);
}

inline int64_t offset_of(const Strides& stride, int64_t batch, int64_t row, int64_t head) {
    return batch * stride.batch + row * stride.row + head * stride.head;
}

// Of sequence `batch`, query heads [head_q, head_q + heads), which share a K/V head.
HeadGroup head_group(const ForwardProblem& problem, const ForwardPointers& pointers, const Sequence& sequence,
                     int64_t batch, int64_t head_q, int64_t heads);

}  // namespace foveal::cpu
