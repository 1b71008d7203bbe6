// Where the rows of one sequence's K or V head lie: the only place that knows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/mask.hpp"

namespace foveal::cpu {

struct KeyRows {
    const std::byte* first;  // the row of key 0; of pages, the first row of page 0
    int64_t row_stride_bytes;
    // Keys in pages: those that hold the sequence's keys, of page_size rows each. null: one row behind the other.
    const uint32_t* pages = nullptr;
    int32_t page_size = 0;
    int64_t page_stride_bytes = 0;

    const std::byte* row(int32_t key) const {
        if (pages == nullptr) return first + key * row_stride_bytes;
        return page_of(key) + key % page_size * row_stride_bytes;
    }

    // The rows of all of them, to rows[0 .. keys.size()). Entries of other keys' pages are not read.
    void find(Range keys, const std::byte** rows) const {
        const int32_t count = keys.size();
        if (pages == nullptr) {
            for (int32_t j = 0; j < count; ++j) rows[j] = first + (keys.begin + j) * row_stride_bytes;
            return;
        }
        for (int32_t j = 0; j < count;) {
            const int32_t key = keys.begin + j, first_row = key % page_size;
            const int32_t end = min_i32(count, j + page_size - first_row);
            const std::byte* from = page_of(key) + first_row * row_stride_bytes;
            for (; j < end; ++j, from += row_stride_bytes) rows[j] = from;
        }
    }

   private:
    const std::byte* page_of(int32_t key) const {
        return first + static_cast<int64_t>(pages[key / page_size]) * page_stride_bytes;
    }
};

}  // namespace foveal::cpu
