// A tree's mask on the scores of one thread (contract 1.3): bit m of a query's words is for the m-th of the sequence's
// last keys, of which there are as many as queries.
#pragma once

#include <cstdint>

#include "sm90/scores/tree.hpp"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Hides what the tree does. words: of the thread's first row. rows_left: of the sequence, from that row on.
// first_node: bit of the thread's first column, which may lie before the tree. nodes: that have bits.
template <int32_t kScores>
__device__ __forceinline__ void hide_by_tree(float (&s)[kScores], const uint32_t* words, int64_t row_stride,
                                             int32_t rows_left, int32_t first_node, int32_t nodes) {
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i) {
        const int32_t node = first_node + Fragment::column_offset(i), row = Fragment::row_offset(i);
        if (node < 0 || node >= nodes || row >= rows_left) continue;
        const uint32_t word = words[row * row_stride + node / 32];
        if ((word >> (node % 32) & 1) == 0) s[i] = -INFINITY;
    }
}

}  // namespace foveal::sm90
