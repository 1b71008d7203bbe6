// The mask of one K/V block on the scores of one thread.
#pragma once

#include <cstdint>

#include "sm90/scores/mask.hpp"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Scores of keys that a row does not see become -inf. row: the thread's first. first_key: of the block.
template <int32_t kScores>
__device__ __forceinline__ void hide_by_band(float (&s)[kScores], Band band, int32_t row, int32_t first_key,
                                             int32_t lane) {
#pragma unroll
    for (int32_t r = 0; r < Fragment::kRows; ++r) {
        const uint32_t visible = visible_positions(band, row + Fragment::kRowDistance * r, first_key, lane);
#pragma unroll
        for (int32_t n = 0; n < kScores / Fragment::kRows; ++n)
            if (!((visible >> n) & 1)) s[Fragment::index(r, Fragment::column_of_nth(n))] = -INFINITY;
    }
}

}  // namespace foveal::sm90
