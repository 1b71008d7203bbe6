// What an append hands to its kernel, and which kernels there are.
#pragma once

#include <cstdint>

#include "problem/append_places.hpp"
#include "problem/dtype.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kAppendThreads = 256;  // a CTA
inline constexpr int32_t kAppendVectorBytes =
    16;                                       // of the new rows, that a thread reads at once where alignment permits
inline constexpr int32_t kAppendStreams = 3;  // k, v, q

// Rows of k, v or q. A head's row is cut into items, each of which a thread takes: first those of pairs that turn, two
// vectors each, then those that are only converted, one vector each.
struct AppendStream {
    const void* from;
    void* to;
    int64_t from_batch_stride, from_row_stride, from_head_stride;
    int64_t to_batch_stride, to_row_stride, to_head_stride;  // batch: of a page
    const float* scale;                                      // or null
    int64_t scale_page_stride, scale_row_stride, scale_head_stride;
    float* scale_out;  // what scale points to, where it is to be worked out first; or null
    bool scales_rows;  // it is of each row
    int32_t heads;
    int32_t turning_items;  // of a head
    int32_t items;          // of a head, all
};

struct AppendParams {
    AppendPlaces places;
    int64_t all_rows;
    int32_t row_items;  // of k, v and q together
    int32_t cta_rows;
    AppendStream streams[kAppendStreams];  // heads 0: absent

    // The rotary embedding.
    const void *cos, *sin;  // [positions, pairs]
    int64_t cos_stride, sin_stride;
    int32_t pairs;
    bool interleaved;
    bool angles_are_f32;  // else of the new rows' type
};

// Address of the kernel for new rows and caches of these types, as the CUDA runtime takes it. kPacked: all is read and
// written a vector at a time.
template <DType kIn, DType kCache, bool kPacked>
const void* append_kernel();

// ---- scales that are worked out -------------------------------------------------------------------------------------

// Of a row and head: the scale itself, by a warp each. Of a head, over all rows: begin_scales() sets it to 0,
// measure_rows() leaves the largest magnitude there, and end_scales() makes the scale of it.
template <DType kIn, bool kPacked>
const void* measure_kernel();
const void* begin_scales_kernel();
const void* end_scales_kernel();

// Of k and of v, each absent where scale_out is null or the scales are of rows.
struct HeadScales {
    float* scale[2];
    int64_t stride[2];
    int32_t heads[2];
};

}  // namespace foveal::sm90
