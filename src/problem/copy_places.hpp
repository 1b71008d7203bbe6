// Which row of a cache of pages is copied where (copy_pages and gather): the only place that knows. Host and device
// share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "problem/lengths.hpp"
#include "problem/page_table.hpp"

namespace foveal {

// from_page -1: nothing is copied.
struct RowCopy {
    int64_t from_page, from_row;
    int64_t to_page, to_row;  // gather: page 0, which all of the result is
};

// The rows of all pairs of pages, page_size each, or of gather's result, are numbered through.
struct CopyPlaces {
    const void* pairs;  // [n, 2]; null: gather
    int64_t pair_stride;
    bool pairs_are_i64;

    // Of gather.
    Lengths lengths;
    int32_t batch;
    PageTable table;  // its page_size is that of pairs as well

    FOVEAL_HOST_DEVICE RowCopy of(int64_t i) const { return pairs != nullptr ? of_pair(i) : of_result(i); }

    // Entry `which` (0: src, 1: dst) of a pair.
    FOVEAL_HOST_DEVICE int64_t page_of(int64_t pair, int32_t which) const {
        const int64_t i = pair * pair_stride + which;
        return pairs_are_i64 ? static_cast<const int64_t*>(pairs)[i] : static_cast<const int32_t*>(pairs)[i];
    }

   private:
    FOVEAL_HOST_DEVICE RowCopy of_pair(int64_t i) const {
        int64_t pair, row;
        if (i <= INT32_MAX) {  // a division of 32 bits takes a third of the time
            const auto small = static_cast<uint32_t>(i), size = static_cast<uint32_t>(table.page_size);
            pair = small / size, row = small % size;
        } else {
            pair = i / table.page_size, row = i % table.page_size;
        }
        const int64_t from = page_of(pair, 0), to = page_of(pair, 1);
        return from < 0 || to < 0 ? RowCopy{-1, 0, 0, 0} : RowCopy{from, row, to, row};
    }

    FOVEAL_HOST_DEVICE RowCopy of_result(int64_t i) const {
        const int32_t sequence = sequence_of(lengths.cu_seqlens, batch, i);
        const SequenceRows rows = lengths.of_varlen(sequence);
        const auto key = static_cast<uint32_t>(i - rows.first), size = static_cast<uint32_t>(table.page_size);
        if (key >= static_cast<uint32_t>(rows.length)) return {-1, 0, 0, 0};
        return {table.of(sequence)[key / size], key % size, 0, i};
    }
};

}  // namespace foveal
