// Chooses the order of tiles (schedule.hpp) for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "../plan.hpp"

namespace foveal::sm90 {

struct OrderChoice {
    int32_t section_keys;
    double imbalance;
};

OrderChoice choose_order(const Problem& problem, int32_t rows, int32_t keys, int32_t grid, bool last_rows_first);

// Load of the busiest CTA over the mean, in K/V blocks, when `grid` CTAs walk the order in serpentines.
double order_imbalance(const Problem& problem, int32_t rows, int32_t keys, int32_t grid, int32_t section_keys,
                       bool last_rows_first);

}  // namespace foveal::sm90
