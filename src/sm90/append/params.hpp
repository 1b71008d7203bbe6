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
    int64_t scale_stride;
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

}  // namespace foveal::sm90
