// Merging of partial results (contract 1.5): what is merged, validated, and where it lies.
#pragma once

#include <array>
#include <cstdint>

#include "foveal/foveal.h"
#include "problem/dtype.hpp"
#include "problem/strides.hpp"

namespace foveal {

// One partial result, or the merged one. Varlen: batch is 1 and rows is total_q.
struct MergePart {
    void* out = nullptr;   // [b, rows, h, d_v]
    float* lse = nullptr;  // [b, h, rows]
    Strides out_stride;
    Strides lse_stride;
};

struct Merge {
    DType dtype = DType::f32;      // of the parts
    DType out_dtype = DType::f32;  // f32 or that of the parts; of f32 parts any float
    int64_t batch = 0;
    int64_t rows = 0;
    int64_t heads = 0;
    int64_t head_dim = 0;  // d_v

    int32_t parts = 0;
    std::array<MergePart, FOVEAL_MAX_MERGE_PARTS> part;  // [parts]; never written, unless `merged` is one of them
    MergePart merged;                                    // lse may be null

    int64_t all_rows() const { return batch * rows * heads; }
};

// Shapes, strides, dtypes, pointers and that what is written overlaps nothing in part. Throws Error(INVALID_ARGUMENT)
// naming the argument.
Merge validate(const foveal_merge_args& args);

}  // namespace foveal
