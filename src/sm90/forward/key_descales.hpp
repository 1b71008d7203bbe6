// What keys in e4m3 are multiplied by (contract 1.14), as the forward kernel reads it. Plain C++: plans fill it.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

// Of K or V; strides in elements.
struct KeyDescale {
    const float* data;  // null: 1
    bool of_rows;       // [pages, page_size, h_k] or [b, s_k, h_k]; else [b, h_k]
    int64_t batch_stride, row_stride, head_stride;
};

struct KeyDescales {
    KeyDescale k, v;
};

}  // namespace foveal::sm90
