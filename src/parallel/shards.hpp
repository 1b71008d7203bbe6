// Views of parts of tensors [b, rows, heads, channels] and log-sum-exps [b, heads, rows].
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "foveal/foveal.h"
#include "problem/dtype.hpp"

namespace foveal::parallel {

// Without gaps, from element `first` of `data` on.
inline foveal_tensor packed_tensor(std::byte* data, foveal_dtype dtype, int64_t first,
                                   std::initializer_list<int64_t> shape) {
    foveal_tensor t{};
    t.dtype = dtype;
    t.data = data + first * bytes_of(dtype_of(t));
    for (const int64_t n : shape) t.shape[t.rank++] = n;
    int64_t stride = 1;
    for (int32_t i = t.rank - 1; i >= 0; --i) {
        t.stride[i] = stride;
        stride *= t.shape[i] > 0 ? t.shape[i] : 1;
    }
    return t;
}

// [first, first + count) of one dimension; of an absent tensor nothing.
inline foveal_tensor rows_of(foveal_tensor t, int dimension, int64_t first, int64_t count) {
    if (t.rank == 0) return t;
    if (t.data != nullptr)
        t.data = static_cast<std::byte*>(t.data) + first * t.stride[dimension] * bytes_of(dtype_of(t));
    t.shape[dimension] = count;
    return t;
}

inline void* rows_at(const foveal_tensor& t, int64_t batch, int64_t row) {
    return static_cast<std::byte*>(t.data) + (batch * t.stride[0] + row * t.stride[1]) * bytes_of(dtype_of(t));
}

// Of rows that lie together.
inline uint64_t bytes_of_rows(const foveal_tensor& t, int64_t rows) {
    return static_cast<uint64_t>(rows * t.shape[2] * t.shape[3] * bytes_of(dtype_of(t)));
}

inline uint64_t bytes_of_lses(int64_t rows) { return static_cast<uint64_t>(rows) * sizeof(float); }

inline float* lse_at(const foveal_tensor& t, int64_t batch, int64_t head, int64_t row) {
    return static_cast<float*>(t.data) + batch * t.stride[0] + head * t.stride[1] + row;
}

}  // namespace foveal::parallel
