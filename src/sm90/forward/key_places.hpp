// Where K and V lie, and where queries stand, for the kernels that take keys of any form (ForwardConfig::any_keys): in
// pages, or dense or packed whatever q's form is. Plain C++: plans fill it.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/scores/tree.hpp"
#include "sm90/tile/divisor.hpp"

namespace foveal::sm90 {

// Fewer rows are no box of the copy engine: the swizzle's pattern is as many rows high.
inline constexpr int32_t kLeastBoxRows = 8;

// K or V as threads read it, 16-bit elements; strides in elements.
struct GatheredRows {
    const void* data;
    int64_t page_stride, row_stride, head_stride;
    int32_t columns;
};

struct KeyPlaces {
    bool in_pages;
    bool dense;        // not in pages: each sequence has rows of its own; else they are packed
    int32_t box_rows;  // that one copy moves; they lie in one page. 0: threads gather the rows one by one
    int32_t boxes;     // of a block, a power of two
    PageTable table;
    Divisor by_page_size;
    GatheredRows k, v;  // of pages, where box_rows is 0

    int32_t decoded_rows;         // of a varlen q: sequences of no more rows are left to the decode kernel
    const int32_t* query_offset;  // [b] or null
    int32_t query_offset_stride;
    TreeMask tree;
};

// Rows of K or V that the copy engine moves at once: a block's, or as many of them as always lie in one page. 0: too
// few. block: keys of a block.
int32_t box_rows_of(const ForwardProblem& problem, int32_t block);

// All but the pointers.
KeyPlaces key_places_of(const ForwardProblem& problem, int32_t block);

// Of a box or a row: the page, or the sequence of dense keys, and the row in it.
struct KeyPlace {
    int32_t page;
    int32_t row;
};

// Outside every tensor: read as zeros.
inline constexpr KeyPlace kNoPlace{-1, 0};

// Of a sequence's rows, of a varlen q, those that the forward kernel computes: all or none.
FOVEAL_HOST_DEVICE int32_t rows_of_forward(const KeyPlaces& places, int32_t len_q) {
    return len_q > places.decoded_rows ? len_q : 0;
}

// entries: the sequence's own (PageTable::of()).
FOVEAL_HOST_DEVICE KeyPlace place_in_pages(const KeyPlaces& places, const uint32_t* entries, int32_t key) {
    const int32_t n = key / places.by_page_size;
    return {static_cast<int32_t>(entries[n]), key - n * places.by_page_size.value()};
}

}  // namespace foveal::sm90
