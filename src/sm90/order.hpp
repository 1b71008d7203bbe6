// Chooses the order of tiles (schedule.hpp) for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "../plan.hpp"

namespace foveal::sm90 {

// A tile costs its K/V blocks and, for its start and end, as much as so many keys.
inline constexpr double kTileOverheadKeys = 150;

struct OrderChoice {
    int32_t section_keys;
    int32_t last_section_units;
    double imbalance;  // load of the busiest CTA over the mean
};

OrderChoice choose_order(const Problem& problem, const DeviceTraits& traits, int32_t rows, int32_t keys, int32_t grid,
                         bool last_rows_first);

}  // namespace foveal::sm90
