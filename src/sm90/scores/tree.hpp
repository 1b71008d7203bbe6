// Which of a sequence's last keys a query sees in a tree (contract 1.3).
#pragma once

#include <cstdint>

namespace foveal::sm90 {

struct TreeMask {
    const uint32_t* data;              // [b, s_q, words] or [total_q, words]; null: absent
    int64_t batch_stride, row_stride;  // in words
    int32_t words;                     // of a query's row
};

}  // namespace foveal::sm90
