// Chooses the order of tiles (schedule.hpp) for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "../plan.hpp"

namespace foveal::sm90 {

OrderChoice choose_order(const Problem& problem, const DeviceTraits& traits, int32_t rows, int32_t keys, int32_t grid,
                         bool last_rows_first);

}  // namespace foveal::sm90
