// Chooses the order of tiles (schedule.hpp): for a dense problem by simulating a few candidates.
#pragma once

#include <cstdint>

#include "cuda/traits.hpp"
#include "problem/forward.hpp"
#include "sm90/forward/schedule.hpp"

namespace foveal::sm90 {

struct OrderChoice {
    // Dense: as in TileOrder.
    int32_t section_units = 1, sections = 1;
    double imbalance = 1.0;  // load of the busiest CTA over the mean
    // Varlen: the keys of one head's K and V that a section may hold, and how many neighbouring CTAs get neighbouring
    // tiles together (balance.cuh); 0: none do.
    int32_t section_keys = 0, bundle = 0;
};

// What all tiles of one KV unit of a dense problem cost together (tile_cost()).
int64_t unit_cost(const ForwardProblem& problem, TileShape tile);

// The dense problem's order that `choice` stands for; the launch hands it to the kernel.
TileOrder tile_order(const ForwardProblem& problem, TileShape tile, const OrderChoice& choice, bool last_rows_first);

// Varlen: whether tiles are packed is for each sequence to say, and not counted on here.
OrderChoice choose_order(const ForwardProblem& problem, const cuda::DeviceTraits& traits, TileShape tile, int32_t grid,
                         bool last_rows_first);

}  // namespace foveal::sm90
