// Chooses the order of tiles (schedule.hpp) for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "backend/plan.hpp"
#include "sm90/forward/schedule.hpp"

namespace foveal::sm90 {

// What all tiles of one KV unit of a dense problem cost together (tile_cost()).
int64_t unit_cost(const Problem& problem, TileShape tile);

// The dense problem's order that `choice` stands for; the launch hands it to the kernel.
TileOrder tile_order(const Problem& problem, TileShape tile, const OrderChoice& choice, bool last_rows_first);

// Varlen: whether tiles are packed is for each sequence to say, and not counted on here.
OrderChoice choose_order(const Problem& problem, const DeviceTraits& traits, TileShape tile, int32_t grid,
                         bool last_rows_first);

}  // namespace foveal::sm90
