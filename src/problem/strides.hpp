// Strides of tensor arguments, in the one form in which problems and backends hold them.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"

namespace foveal {

// The distance in elements between neighbours of a [b, s, h, d] tensor; varlen: batch is 0, row is the token.
// A dimension of size 1 has stride 0 here, whatever the caller gave.
struct Strides {
    int64_t batch = 0;
    int64_t row = 0;
    int64_t head = 0;
    bool operator==(const Strides&) const = default;
};

// The same of a value for each score; key: 1, or 0 where all keys share it. 0 where a dimension is shared.
struct ScoreStrides : Strides {
    int64_t key = 0;
    bool operator==(const ScoreStrides&) const = default;
};

bool has_elements(const foveal_tensor& t);
int64_t stride_or_zero(const foveal_tensor& t, int dimension);  // 0 where the dimension has size 1

// All are 0 where there is no element: the pointer may be null then, and nothing may be added to it.
Strides strides_of(const foveal_tensor& t);      // of [b, s, h, d] or, varlen, [total, h, d]
Strides lse_strides_of(const foveal_tensor& t);  // of [b, h, s] or, varlen, [h, total]
// Of a vector [n], or of the rows of [b, n]: 1, or 0 where one element stands for all.
int64_t unit_stride_of(const foveal_tensor& t);
// Of [h] or [b, h], a value for each head.
Strides head_strides_of(const foveal_tensor& t);
// Of [pages, page_size, h] or [b, s, h], a value for each row and head.
Strides row_value_strides_of(const foveal_tensor& t);
// Of [b, h, s_q, s_k], each 1 where it is shared, and what is missing of the first.
ScoreStrides score_strides_of(const foveal_tensor& t);

}  // namespace foveal
