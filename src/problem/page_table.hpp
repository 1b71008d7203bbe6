// Which pages hold a sequence's keys (contract 1.11): the only place that knows. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal {

// Of all sequences. Key j of sequence i is row j % page_size of page of(i)[j / page_size]; nobody may read an entry
// that no seen key needs.
struct PageTable {
    const uint32_t* entries;  // [b, max_pages], or [n] where there is indptr
    const int32_t* indptr;    // [b + 1] or null
    int64_t stride;           // between the sequences of [b, max_pages]
    int32_t page_size;

    FOVEAL_HOST_DEVICE const uint32_t* of(int32_t sequence) const {
        return entries + (indptr != nullptr ? indptr[sequence] : sequence * stride);
    }
};

}  // namespace foveal
