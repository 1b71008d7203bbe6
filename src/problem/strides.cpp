#include "problem/strides.hpp"

#include <algorithm>

namespace foveal {

bool has_elements(const foveal_tensor& t) {
    return std::all_of(t.shape, t.shape + t.rank, [](int64_t n) { return n > 0; });
}

int64_t stride_or_zero(const foveal_tensor& t, int dimension) {
    return t.shape[dimension] > 1 ? t.stride[dimension] : 0;
}

Strides strides_of(const foveal_tensor& t) {
    if (!has_elements(t)) return {};
    const int row = t.rank == 4 ? 1 : 0;
    return {t.rank == 4 ? stride_or_zero(t, 0) : 0, stride_or_zero(t, row), stride_or_zero(t, row + 1)};
}

Strides lse_strides_of(const foveal_tensor& t) {
    if (!has_elements(t)) return {};
    const int head = t.rank == 3 ? 1 : 0;
    return {t.rank == 3 ? stride_or_zero(t, 0) : 0, 1, stride_or_zero(t, head)};
}

int64_t unit_stride_of(const foveal_tensor& t) { return t.shape[t.rank - 1] > 1 ? t.stride[t.rank - 1] : 1; }

Strides head_strides_of(const foveal_tensor& t) {
    if (!has_elements(t)) return {};
    return {t.rank == 2 ? stride_or_zero(t, 0) : 0, 0, unit_stride_of(t)};
}

Strides row_value_strides_of(const foveal_tensor& t) {
    if (!has_elements(t)) return {};
    return {stride_or_zero(t, 0), stride_or_zero(t, 1), stride_or_zero(t, 2)};
}

ScoreStrides score_strides_of(const foveal_tensor& t) {
    if (!has_elements(t)) return {};
    const auto from_the_end = [&](int n) { return n < t.rank ? stride_or_zero(t, t.rank - 1 - n) : 0; };
    return {{from_the_end(3), from_the_end(1), from_the_end(2)}, from_the_end(0)};
}

}  // namespace foveal
