// Append (contract 1.12): what goes into a cache, validated, and where it lies.
#pragma once

#include <array>
#include <cstdint>

#include "foveal/foveal.h"
#include "problem/append_places.hpp"
#include "problem/dtype.hpp"
#include "problem/strides.hpp"

namespace foveal {

// The scale of numbers in e4m3, the largest of which is `largest`.
inline float e4m3_scale_of(float largest) {
    const float scale = largest / 448;
    return scale > 0 ? scale : 1;
}

// Rows of k, v or q, and where they go.
struct AppendedRows {
    const void* from = nullptr;  // [b, rows, heads, head_dim]; null: there are none
    void* to = nullptr;          // [pages, page_size, heads, head_dim]; q: as `from`
    Strides from_stride;
    Strides to_stride;  // batch: of a page
    DType to_dtype = DType::f32;
    int64_t heads = 0;
    int64_t head_dim = 0;
    bool in_cache = true;          // false: q, whose rows keep their places
    bool turns = false;            // under the rotary embedding
    const float* scale = nullptr;  // [heads] or, stride 0, of all; null: 1
    int64_t scale_stride = 0;
    float* scale_out = nullptr;  // [heads], or of each row [pages, page_size, heads]: to be worked out; null: it is not
    Strides scale_out_stride;
    bool scales_rows = false;  // the latter

    bool present() const { return from != nullptr; }
};

// The rotary embedding: cos and sin of the angles of each position.
struct Rotary {
    const void* cos = nullptr;  // [positions, dim / 2]; null: there is none
    const void* sin = nullptr;
    int64_t cos_stride = 0, sin_stride = 0;  // between positions
    DType dtype = DType::f32;
    int64_t positions = 0;
    int64_t dim = 0;  // the elements of a row that turn, the first
    bool interleaved = false;
};

struct Append {
    DType dtype = DType::f32;  // of the new rows
    int64_t outer = 0;         // dense: b; ragged: 1
    AppendPlaces places;
    int64_t pages = 0;      // of the cache
    int64_t max_pages = 0;  // of a sequence
    Rotary rotary;
    std::array<AppendedRows, 3> rows;  // k, v, q

    int64_t all_rows() const { return outer * places.rows; }
};

// Shapes, strides, dtypes, pointers, and that what is written lies apart from all else. Throws Error(INVALID_ARGUMENT)
// naming the argument.
Append validate(const foveal_append_args& args);

}  // namespace foveal
