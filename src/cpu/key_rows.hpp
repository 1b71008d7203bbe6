// Where the rows of one sequence's K or V head lie: the only place that knows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace foveal::cpu {

struct KeyRows {
    const std::byte* first;  // the row of key 0
    int64_t row_stride_bytes;

    const std::byte* row(int64_t key) const { return first + key * row_stride_bytes; }
};

}  // namespace foveal::cpu
