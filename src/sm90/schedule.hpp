// The order in which tiles are computed, and by which CTA: closed forms, evaluated by the kernel's producers and by
// the plan on the host.
//
// A KV unit is one KV head of one sequence; its tiles are all row blocks of the `group` query heads that share it.
// Units are taken in sections. Inside a section the row blocks go from the last to the first where the mask gives later
// rows more keys (longest first), and units and heads change fastest, so that CTAs that run side by side read the same
// few K/V blocks. Small sections mix long tiles with short ones and tiles that bring new keys from DRAM with such that
// find them in L2; a larger one at the end lets all CTAs end together.
#pragma once

#include <cstdint>

#include "../mask.hpp"
#include "tiles.hpp"

namespace foveal::sm90 {

struct TileOrder {
    int32_t units;          // KV units in all: b * h_k dense, h_k for one sequence of a varlen batch
    int32_t group;          // query heads a unit
    int32_t row_blocks;     // tiles a query head
    int32_t section_units;  // KV units a section, >= 1
    int32_t sections;       // >= 1; the last has the units that are left
    bool last_rows_first;

    FOVEAL_HOST_DEVICE int32_t tiles() const { return units * group * row_blocks; }
};

struct TilePlace {
    int32_t unit;
    int32_t head_in_group;
    int32_t row_block;
};

struct Section {
    int32_t first_tile, first_unit, units;
};

// The section that tile `t` of [0, order.tiles()) is in.
FOVEAL_HOST_DEVICE Section section_at(TileOrder order, int32_t t) {
    const int32_t section_tiles = order.section_units * order.group * order.row_blocks;
    const int32_t section = min_i32(t / section_tiles, order.sections - 1);
    const int32_t first_unit = section * order.section_units;
    const bool last = section + 1 == order.sections;
    return {section * section_tiles, first_unit, last ? order.units - first_unit : order.section_units};
}

// Every place occurs once.
FOVEAL_HOST_DEVICE TilePlace tile_place(TileOrder order, int32_t t) {
    const Section section = section_at(order, t);
    const int32_t heads = section.units * order.group;
    const int32_t step = (t - section.first_tile) / heads;
    const int32_t head = t - section.first_tile - step * heads;
    const int32_t unit = head / order.group;
    return {section.first_unit + unit, head - unit * order.group,
            order.last_rows_first ? order.row_blocks - 1 - step : step};
}

// The tile that CTA `cta` of `grid` computes as its `turn`-th: a serpentine, so that a CTA which got the longest tile
// of one turn gets the shortest of the next.
FOVEAL_HOST_DEVICE int32_t serpentine(int32_t turn, int32_t cta, int32_t grid) {
    return turn * grid + ((turn & 1) ? grid - 1 - cta : cta);
}

// Sections of a sequence whose K and V rows of one head count `len_k`: as many heads as `section_keys` keys hold.
FOVEAL_HOST_DEVICE int32_t section_units(int32_t section_keys, int32_t len_k, int32_t units) {
    return max_i32(1, min_i32(units, section_keys / max_i32(len_k, 1)));
}

// Sections of `section_units` KV units, of which the last holds at least `least_in_last`, >= 1.
FOVEAL_HOST_DEVICE int32_t section_count(int32_t units, int32_t section_units, int32_t least_in_last) {
    return max_i32(units - least_in_last, 0) / section_units + 1;
}

// What a warpgroup's rows need of a tile, at least one block.
struct OwnWork {
    BlockRange blocks;
    int32_t steps_before, steps_after;  // of the tile, that only other rows need
};

// Of the 64 rows from `row` on. tile: what the whole tile needs; is_ascending(): whether its blocks are visited in that
// order. Rows may need fewer blocks than their tile at either end, but no fewer than the ring of K and V makes up for,
// or the warpgroups would wait for each other for ever (tests/rings_test.cpp). A window moves with the rows, so it sees
// to that if rows past the sequence's end count as its last; chunks jump, so there all rows get the tile's blocks.
template <class IsAscending>
FOVEAL_HOST_DEVICE OwnWork own_work(Band band, bool chunked, BlockRange tile, int32_t row, int32_t len_q, int32_t keys,
                                    IsAscending is_ascending) {
    if (chunked) return {tile, 0, 0};
    const int32_t begin = min_i32(row, len_q - 1);
    BlockRange blocks = kv_range(band, {begin, min_i32(begin + kWarpgroupRows, len_q)}, keys);
    if (blocks.visit.size() == 0) blocks = {{tile.visit.begin, tile.visit.begin + 1}, {0, 0}};
    const int32_t below = blocks.visit.begin - tile.visit.begin, above = tile.visit.end - blocks.visit.end;
    const bool ascending = is_ascending();
    return {blocks, ascending ? below : above, ascending ? above : below};
}

}  // namespace foveal::sm90
