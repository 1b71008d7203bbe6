// The order in which tiles are computed, and by which CTA: closed forms, evaluated by the kernel's producers and by
// the plan on the host.
//
// A KV unit is one KV head of one sequence; its tiles are all row blocks of the query heads that share it, heads_per_kv
// of them. Units are taken in sections. Inside a section the row blocks go from the last to the first where the mask
// gives later rows more keys (longest first), and units and heads change fastest, so that CTAs that run side by side
// read the same few K/V blocks. Small sections mix long tiles with short ones and tiles that bring new keys from DRAM
// with such that find them in L2; a larger one at the end lets all CTAs end together.
//
// A tile's rows are queries of one head, or, packed, of 2^heads_log2 heads that share K and V: 16 queries, a warp's
// rows, of each head, then the next 16. So short sequences, and the ends of others, do not leave tiles half empty. The
// last pack of a unit may have fewer heads; the rows of the others are then as if past the sequence's end.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/tile/divisor.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// Of a tile's g-th segment, 16 rows, a warp's: the first query, counted from the tile's first, and which of the tile's
// heads.
FOVEAL_HOST_DEVICE int32_t query_in_tile(int32_t g, int32_t heads_log2) { return (g >> heads_log2) * kWarpRows; }
FOVEAL_HOST_DEVICE int32_t head_in_tile(int32_t g, int32_t heads_log2) { return g & ((1 << heads_log2) - 1); }

// Queries of which a warpgroup has rows.
FOVEAL_HOST_DEVICE int32_t queries_of_warpgroup(int32_t heads_log2) {
    return max_i32(kWarpRows, kWarpgroupRows >> heads_log2);
}

inline constexpr int32_t kMaxBundles = 64;  // of CTAs, that take tiles of a varlen batch together (balance.cuh)

// What the order needs to know of a tile.
struct TileShape {
    int32_t rows, keys;
    int32_t heads_log2;  // packed
    int32_t queries() const { return rows >> heads_log2; }
};

// Packs of the heads that share a KV head.
FOVEAL_HOST_DEVICE int32_t packs_of(int32_t heads_per_kv, int32_t heads_log2) {
    return (heads_per_kv + (1 << heads_log2) - 1) >> heads_log2;
}

// Tiles of a sequence and of 2^heads_log2 heads that are packed. rows: a tile.
FOVEAL_HOST_DEVICE int32_t row_blocks_of(int32_t len_q, int32_t rows, int32_t heads_log2) {
    const int32_t full = len_q / rows, rest = len_q - full * rows;
    return (full << heads_log2) + ((rest << heads_log2) + rows - 1) / rows;
}

// A tile costs the keys of its K/V blocks and, for its start and end, as much as so many more.
inline constexpr int32_t kTileOverheadKeys = 150;

// blocks: that the tile visits; one where it sees no key.
FOVEAL_HOST_DEVICE int32_t tile_cost(Range blocks, int32_t keys) {
    return max_i32(1, blocks.size()) * keys + kTileOverheadKeys;
}

struct TileOrder {
    int32_t units;          // KV units in all: b * h_k dense, h_k for one sequence of a varlen batch
    int32_t heads_per_kv;   // query heads a unit; packed: packs of them
    int32_t row_blocks;     // tiles a query head or a pack
    int32_t section_units;  // KV units a section, >= 1
    int32_t sections;       // >= 1; the last has the units that are left
    bool last_rows_first;

    FOVEAL_HOST_DEVICE int32_t tiles() const { return units * heads_per_kv * row_blocks; }
    FOVEAL_HOST_DEVICE int32_t section_tiles() const { return section_units * heads_per_kv * row_blocks; }
    FOVEAL_HOST_DEVICE int32_t units_of(int32_t section) const {
        return section + 1 == sections ? units - section * section_units : section_units;
    }

    // The quotients that tile_place() needs.
    FOVEAL_HOST_DEVICE int32_t sections_before(int32_t t) const { return t / section_tiles(); }
    FOVEAL_HOST_DEVICE int32_t steps_before(int32_t section, int32_t t) const {
        return t / (units_of(section) * heads_per_kv);
    }
    FOVEAL_HOST_DEVICE int32_t units_before(int32_t head) const { return head / heads_per_kv; }
};

// The same for the kernel, which walks an order that the host has chosen: a tile is found in fewer instructions.
struct FastTileOrder : TileOrder {
    Divisor by_section_tiles, by_section_heads, by_last_heads, by_heads_per_kv;

    FastTileOrder() = default;
    explicit FastTileOrder(const TileOrder& order)
        : TileOrder(order),
          by_section_tiles(order.section_tiles()),
          by_section_heads(order.section_units * order.heads_per_kv),
          by_last_heads(order.units_of(order.sections - 1) * order.heads_per_kv),
          by_heads_per_kv(order.heads_per_kv) {}

    FOVEAL_HOST_DEVICE int32_t sections_before(int32_t t) const { return t / by_section_tiles; }
    FOVEAL_HOST_DEVICE int32_t steps_before(int32_t section, int32_t t) const {
        return section + 1 == sections ? t / by_last_heads : t / by_section_heads;
    }
    FOVEAL_HOST_DEVICE int32_t units_before(int32_t head) const { return head / by_heads_per_kv; }
};

struct TilePlace {
    int32_t section;
    int32_t unit;
    int32_t head_in_unit;
    int32_t row_block;
};

// Tile `t` of [0, order.tiles()). Every place occurs once.
template <class Order>
FOVEAL_HOST_DEVICE TilePlace tile_place(const Order& order, int32_t t) {
    const int32_t section = min_i32(order.sections_before(t), order.sections - 1);
    const int32_t in_section = t - section * order.section_tiles();
    const int32_t step = order.steps_before(section, in_section);
    const int32_t head = in_section - step * order.units_of(section) * order.heads_per_kv;
    const int32_t unit = order.units_before(head);
    return {section, section * order.section_units + unit, head - unit * order.heads_per_kv,
            order.last_rows_first ? order.row_blocks - 1 - step : step};
}

// The tile that CTA `cta` of `grid` computes as its `round`-th: a serpentine, so that a CTA which got the longest tile
// of one round gets the shortest of the next.
FOVEAL_HOST_DEVICE int32_t serpentine(int32_t round, int32_t cta, int32_t grid) {
    return round * grid + ((round & 1) ? grid - 1 - cta : cta);
}

// Sections of a sequence whose K and V rows of one head count `len_k`: as many heads as `section_keys` keys hold, and a
// multiple of `step`, which divides `units`. Without a branch: the kernel's divisions overlap, and a branch that spared
// them cost 2-10 % on batches of short sequences (H100, 2026-11-25).
FOVEAL_HOST_DEVICE int32_t section_units(int32_t section_keys, int32_t len_k, int32_t units, const Divisor& step) {
    const int32_t fitting = min_i32(units, section_keys / max_i32(len_k, 1));
    return max_i32(step.value(), fitting / step * step.value());
}

// Sections of `section_units` KV units, of which the last holds at least `least_in_last`, >= 1.
FOVEAL_HOST_DEVICE int32_t section_count(int32_t units, int32_t section_units, int32_t least_in_last) {
    return max_i32(units - least_in_last, 0) / section_units + 1;
}

// kv_range(), but where a row sees none of the first block, the second counts as masked: whether a row is still to be
// set up is asked only there (softmax.cuh, start_unseen()).
FOVEAL_HOST_DEVICE BlockRange blocks_of_rows(Band band, Range rows, int32_t keys) {
    BlockRange blocks = kv_range(band, rows, keys);
    if (visible_keys(band, rows.end - 1).begin < (blocks.visit.begin + 1) * keys) return blocks;
    blocks.unmasked.begin = max_i32(blocks.unmasked.begin, min_i32(blocks.visit.begin + 2, blocks.visit.end));
    blocks.unmasked.end = max_i32(blocks.unmasked.end, blocks.unmasked.begin);
    return blocks;
}

// What a warpgroup's rows need of a tile, at least one block.
struct OwnWork {
    BlockRange blocks;
    int32_t steps_before, steps_after;  // of the tile, that only other rows need
};

// Of a warpgroup's queries, [row, row + rows). tile: what the whole tile needs; is_ascending(): whether its blocks are
// visited in that order. Rows may need fewer blocks than their tile at either end, but no fewer than the ring of K and
// V makes up for, or the warpgroups would wait for each other for ever (tests/sm90/rings_test.cpp). A window moves with
// the rows, so it sees to that if rows past the sequence's end count as its last; chunks jump, so there all rows get
// the tile's blocks.
template <class IsAscending>
FOVEAL_HOST_DEVICE OwnWork own_work(Band band, bool chunked, BlockRange tile, int32_t row, int32_t rows, int32_t len_q,
                                    int32_t keys, IsAscending is_ascending) {
    if (chunked) return {tile, 0, 0};
    const int32_t begin = min_i32(row, len_q - 1);
    BlockRange blocks = blocks_of_rows(band, {begin, min_i32(begin + rows, len_q)}, keys);
    if (blocks.visit.size() == 0) {  // before the first key, or behind the last
        const int32_t block = min_i32(blocks.visit.begin, tile.visit.end - 1);
        blocks = {{block, block + 1}, {0, 0}};
    }
    const int32_t below = blocks.visit.begin - tile.visit.begin, above = tile.visit.end - blocks.visit.end;
    const bool ascending = is_ascending();
    return {blocks, ascending ? below : above, ascending ? above : below};
}

}  // namespace foveal::sm90
