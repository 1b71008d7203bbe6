// Chooses the order of tiles (schedule.hpp) for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "../plan.hpp"
#include "schedule.hpp"

namespace foveal::sm90 {

// The dense problem's order that `choice` stands for; the launch hands it to the kernel.
TileOrder tile_order(const Problem& problem, int32_t rows, const OrderChoice& choice, bool last_rows_first);

OrderChoice choose_order(const Problem& problem, const DeviceTraits& traits, int32_t rows, int32_t keys, int32_t grid,
                         bool last_rows_first);

}  // namespace foveal::sm90
