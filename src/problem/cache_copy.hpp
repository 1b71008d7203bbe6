// Copies within and out of a cache of pages, validated: copy_pages and gather. No bit of an element changes.
#pragma once

#include <array>
#include <cstdint>

#include "foveal/foveal.h"
#include "problem/copy_places.hpp"
#include "problem/dtype.hpp"
#include "problem/strides.hpp"

namespace foveal {

// Rows of k or of v, and where they go.
struct CopiedRows {
    const void* from = nullptr;  // [pages, page_size, heads, head_dim]; null: there are none
    void* to = nullptr;          // the same, or [total, heads, head_dim]
    Strides from_stride;         // batch: of a page
    Strides to_stride;
    int64_t heads = 0;
    int64_t head_dim = 0;

    bool present() const { return from != nullptr; }
};

struct CacheCopy {
    DType dtype = DType::f32;  // of all
    int64_t pages = 0;         // of the cache
    bool gathers = false;      // else pages are copied
    int64_t entries = 0;       // of gather's table: of each sequence, or of the list of all
    int64_t rows = 0;          // numbered through, as CopyPlaces has them
    CopyPlaces places{};
    std::array<CopiedRows, 2> streams;  // k, v
};

// Shapes, strides, dtypes, pointers, and that what is written lies apart from all else. Throws Error(INVALID_ARGUMENT)
// naming the argument.
CacheCopy validate(const foveal_copy_pages_args& args);
CacheCopy validate(const foveal_gather_args& args);

}  // namespace foveal
