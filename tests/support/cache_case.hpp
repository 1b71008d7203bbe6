// One operation on a cache of pages as a line of text, e.g. "append b128 s1 hq32 hk8 d128 bf16 page64".
//
//   token                        meaning                                                                    default
//   append                       new rows of k, v and q, turned by a rotary embedding, go to slots
//   copy_pages                   pages of k and v are copied, pair by pair
//   gather                       sequences in pages are written one behind the other
//   b128 s1                      sequences, and the rows of each | n256: pairs of pages (copy_pages)        b1
//   hq32 hk8 d128                query heads (append), KV heads, channels of all                            hq = hk,
//   d128 bf16 | f16 | f32             type of all but the angles, which are f32                                  bf16
//   page64                       rows of a page                                                             page64
//   seed7                        of the random inputs                                                       seed1
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tests/support/case.hpp"

namespace foveal_testing {

struct CacheCase {
    enum class Operation { kAppend, kCopyPages, kGather };

    Operation operation = Operation::kAppend;
    int64_t batch = 1, rows = 1;  // copy_pages: rows counts the pairs
    int64_t heads_q = 1, heads_k = 1, channels = 128, page_size = 64;
    foveal_dtype dtype = FOVEAL_BF16;
    uint64_t seed = 1;

    bool operator==(const CacheCase&) const = default;

    bool appends() const { return operation == Operation::kAppend; }
    // Rows of k that are written.
    int64_t written_rows() const;
    // Two products and a sum for each element that turns.
    double flops() const;
    // Each row that is moved read once and written once, angles read once.
    double min_bytes() const;
};

// Is it the text of such an operation?
bool is_cache_text(std::string_view text);

// Throws CaseError.
CacheCase parse_cache_case(std::string_view text);
// Canonical text; parse_cache_case(to_text(c)) == c.
std::string to_text(const CacheCase& c);

// "append", "copy_pages", "gather"
const char* operation_name(CacheCase::Operation operation);

}  // namespace foveal_testing
