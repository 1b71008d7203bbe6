// What a copy of pages, or a gather, hands to its kernel, and which kernels there are.
#pragma once

#include <cstdint>

#include "problem/copy_places.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kCopyThreads = 256;      // a CTA
inline constexpr int32_t kCopyItemsOfThread = 4;  // all are loaded before the first is stored
inline constexpr int32_t kCopyStreams = 2;        // k, v

// Rows of k or v. A row is cut into items of so many bytes as the kernel says; strides are in items.
struct CopyStream {
    const void* from;
    void* to;
    int64_t from_page_stride, from_row_stride, from_head_stride;
    int64_t to_page_stride, to_row_stride, to_head_stride;
    int32_t head_items;
    int32_t items;  // of a row, all heads; 0: absent
};

struct CopyParams {
    CopyPlaces places;
    int64_t rows;
    int32_t row_items;  // of k and v together
    int32_t cta_rows;
    CopyStream streams[kCopyStreams];
};

// Address of the kernel for items of so many bytes (16, 4, 2 or 1), as the CUDA runtime takes it.
template <int32_t kItemBytes>
const void* copy_kernel();

}  // namespace foveal::sm90
