// One merge of partial results (contract 1.5) as a line of text, e.g. "merge parts4 b8 s4096 h32 d128 bf16".
//
//   token               meaning                                                    default
//   merge               the first word of every such text
//   parts4              how many partial results                                   parts2
//   b8 s4096 h32 d128   of every one of them: [b, s, h, d]                         b1, d128
//   bf16 | f16 | f32    type of the partial results, and of out                    bf16
//   to_f32              type of out
//   varlen              [s, h, d]: packed, s counts all tokens                     dense
//   lse                 the merged log-sum-exp is asked for
//   odd | bhsd          pitches that no 16-byte load fits | memory order b h s d   packed
//   seed7               of the random inputs                                       seed1
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "foveal/foveal.h"
#include "tests/support/case.hpp"

namespace foveal_testing {

struct MergeCase {
    enum class Layout { kPacked, kOddStrides, kHeadsFirst };

    int64_t batch = 2, rows = 37, heads = 3, channels = 64;
    bool varlen = false;  // batch 1
    int32_t parts = 2;
    foveal_dtype dtype = FOVEAL_F32, out_dtype = FOVEAL_F32;
    Layout layout = Layout::kPacked;
    bool lse = true;
    uint64_t seed = 1;

    bool operator==(const MergeCase&) const = default;

    std::vector<int64_t> out_shape() const;
    std::vector<int64_t> lse_shape() const;
    int64_t all_rows() const { return batch * rows * heads; }
    // Place of row i, counted as in out, among the log-sum-exps.
    size_t lse_index(int64_t i) const;

    // A multiply and an add for each element of each part.
    double flops() const;
    // Every part and its log-sum-exps read once, the result written once.
    double min_bytes() const;
};

// Is it the text of a merge? Else it is that of an attention problem (case.hpp).
bool is_merge_text(std::string_view text);

// Throws CaseError.
MergeCase parse_merge_case(std::string_view text);
// Canonical text; parse_merge_case(to_text(c)) == c.
std::string to_text(const MergeCase& c);

}  // namespace foveal_testing
