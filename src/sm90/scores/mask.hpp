// The mask of one K/V block in the registers of one thread (tile/fragment.hpp).
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// A thread's keys of a row, in ascending order, are the row's positions.
// Bits 0 .. n - 1 where n positions lie below column `limit`, given as distance from the thread's first column.
FOVEAL_HOST_DEVICE uint32_t positions_below(int32_t limit) {
    const int32_t columns = max_i32(0, min_i32(limit, 128));
    const int32_t n = Fragment::count_below(columns);
    return static_cast<uint32_t>((uint64_t{1} << n) - 1);
}

// Bit p is set iff position p of this lane is a key that query row `row` sees; the block starts at key `first_key`.
// Covers blocks of up to 128 keys.
FOVEAL_HOST_DEVICE uint32_t visible_positions(Band band, int32_t row, int32_t first_key, int32_t lane) {
    const Range keys = visible_keys(band, row);
    const int32_t first_column = first_key + Fragment::first_column(lane);
    return positions_below(keys.end - first_column) & ~positions_below(keys.begin - first_column);
}

}  // namespace foveal::sm90
