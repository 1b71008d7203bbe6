// How the keys of a decode are cut among CTAs, and how the partial results are put together again. Host and device
// share it; it is all arithmetic.
//
// Keys are counted in blocks of 64. A sequence's blocks are grouped into leaves, and over its leaves there is one
// binary tree: where a node has no right child, the left one takes its place. Leaves and tree follow from the
// sequence's own number of blocks alone, and a result is always added up along this tree, so its bits do not depend on
// where the work is cut.
//
// The blocks of all sequences, one behind the other, are dealt out to teams in equal shares; a team is so many CTAs as
// there are heads, one each. What a CTA gets of one sequence is a piece: whole leaves, since cuts are rounded to
// them. Of a piece that is not the whole sequence it works out those nodes of the tree that lie inside the piece and
// whose parents do not; whoever brings a sequence's last piece reads all these nodes and finishes the tree.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kBlockKeys = 64;

// Of x > 0: bits below the highest one that is set, and zeros below the lowest.
FOVEAL_HOST_DEVICE int32_t floor_log2(uint32_t x) {
#ifdef __CUDA_ARCH__
    return 31 - __clz(static_cast<int32_t>(x));
#else
    return 31 - __builtin_clz(x);
#endif
}
FOVEAL_HOST_DEVICE int32_t trailing_zeros(uint32_t x) {
#ifdef __CUDA_ARCH__
    return __ffs(static_cast<int32_t>(x)) - 1;
#else
    return __builtin_ctz(x);
#endif
}

// ---- leaves ---------------------------------------------------------------------------------------------------------

struct Leaves {
    int32_t log2_blocks;  // of blocks in a leaf; the last may have fewer
    int32_t count;
};

// At most 2^levels, and from 1024 keys on at least two blocks each: that saves 2 to 3 % on batches of 1024 keys each.
FOVEAL_HOST_DEVICE Leaves leaves_of(int32_t blocks, int32_t levels) {
    constexpr int32_t kTwoBlocksFrom = 16;
    const int32_t needed = blocks <= 1 << levels ? 0 : floor_log2(static_cast<uint32_t>(blocks - 1)) + 1 - levels;
    const int32_t log2_blocks = blocks >= kTwoBlocksFrom ? max_i32(needed, 1) : needed;
    return {log2_blocks, (blocks + (1 << log2_blocks) - 1) >> log2_blocks};
}

// ---- dealing --------------------------------------------------------------------------------------------------------

struct Teams {
    uint32_t count;
    int32_t log2;  // -1: no power of two
};

struct Deal {
    uint32_t blocks;  // of all sequences; one without keys counts as a block
    uint32_t share;   // of a team
};

FOVEAL_HOST_DEVICE Deal deal_of(uint32_t blocks, const Teams& teams) {
    constexpr uint32_t kExactFrom = 32;  // blocks a team: below, rounding costs nothing that the memory notices
    const uint32_t rounded_up = (blocks > 0 ? blocks : 1) + teams.count - 1;
    const uint32_t mean = teams.log2 >= 0 ? rounded_up >> teams.log2 : rounded_up / teams.count;
    if (mean >= kExactFrom) return {blocks, mean};
    // A power of two or one and a half of one: equal sequences are then cut where their trees are.
    const int32_t log2 = floor_log2(mean);
    const uint32_t rounded = mean == 1u << log2                     ? mean
                             : log2 > 0 && mean <= 3u << (log2 - 1) ? 3u << (log2 - 1)
                                                                    : 2u << log2;
    return {blocks, rounded};
}

// Where the share of team number `team` begins, among all blocks, before it is rounded.
FOVEAL_HOST_DEVICE uint32_t bound_of(uint32_t team, const Deal& deal) {
    const uint32_t bound = team * deal.share;
    return bound < deal.blocks ? bound : deal.blocks;
}

// To a multiple of how many blocks, as a power of two, a bound is rounded in a sequence with such leaves. A quarter of
// a share, at most eight blocks, is too little to matter.
FOVEAL_HOST_DEVICE int32_t log2_grain(const Leaves& leaves, const Deal& deal) {
    return max_i32(leaves.log2_blocks, min_i32(3, floor_log2(deal.share) - 2));
}

// Blocks [begin, end) of a sequence.
struct Piece {
    int32_t begin, end;
    FOVEAL_HOST_DEVICE bool is_empty() const { return begin >= end; }
};

// Where the share of team number `team` begins in a sequence of `blocks` blocks that has `before` blocks of others
// before it.
FOVEAL_HOST_DEVICE int32_t cut_of(uint32_t team, uint32_t before, int32_t blocks, const Leaves& leaves,
                                  const Deal& deal) {
    const uint32_t bound = bound_of(team, deal);
    if (bound <= before) return 0;
    if (bound >= before + static_cast<uint32_t>(blocks)) return blocks;
    const int32_t log2 = log2_grain(leaves, deal);
    const int32_t cut = (static_cast<int32_t>(bound - before) + ((1 << log2) >> 1)) >> log2 << log2;
    return min_i32(cut, blocks);
}

FOVEAL_HOST_DEVICE Piece piece_of(uint32_t team, uint32_t before, int32_t blocks, const Leaves& leaves,
                                  const Deal& deal) {
    return {cut_of(team, before, blocks, leaves, deal), cut_of(team + 1, before, blocks, leaves, deal)};
}

// Of a sequence that is cut, a number below teams.count - 1 that no other has, if it has `before` blocks before it: the
// first team that begins inside it, less one.
FOVEAL_HOST_DEVICE uint32_t count_of(uint32_t before, const Deal& deal) { return before / deal.share; }

// A team that no piece of a sequence is before, if it has `before` blocks before it. The division is rounded.
FOVEAL_HOST_DEVICE uint32_t first_team_of(uint32_t before, const Deal& deal) {
    const auto team = static_cast<uint32_t>(static_cast<float>(before) / static_cast<float>(deal.share));
    return team > 2 ? team - 2 : 0;
}

// ---- the tree -------------------------------------------------------------------------------------------------------
// Nodes are named by their first leaf. Those of a piece are taken from the left: after each leaf, while its node and
// the one on the stack are siblings, they become one.

// Of the nodes that a piece from leaf `begin` on has left of leaf `first` > begin, the last one's size as a power of
// two.
FOVEAL_HOST_DEVICE int32_t log2_of_node_below(int32_t first, int32_t begin) {
    return min_i32(trailing_zeros(static_cast<uint32_t>(first)), floor_log2(static_cast<uint32_t>(first - begin)));
}

// Is the node [first, leaf], of a tree with so many leaves, the right sibling of the one left of it in the piece?
FOVEAL_HOST_DEVICE bool is_right_sibling(int32_t first, int32_t leaf, int32_t begin, int32_t leaves) {
    if (first <= begin) return false;
    const int32_t log2 = log2_of_node_below(first, begin);
    if (log2 != trailing_zeros(static_cast<uint32_t>(first))) return false;  // that one is in another piece
    return leaf + 1 - first == 1 << log2 || leaf + 1 == leaves;
}

// Is [first, leaf] a whole node whose left sibling is in another piece? Nothing more is added to it here.
FOVEAL_HOST_DEVICE bool is_left_apart(int32_t first, int32_t leaf, int32_t begin) {
    const int32_t size = leaf + 1 - first;
    return (size & (size - 1)) == 0 && (first & size) != 0 && first - size < begin;
}

// Where the node that begins at leaf `first` ends, in a piece that ends before leaf `end`.
FOVEAL_HOST_DEVICE int32_t end_of_node(int32_t first, int32_t end, int32_t leaves) {
    if (end >= leaves)
        return first == 0 ? leaves : min_i32(first + (1 << trailing_zeros(static_cast<uint32_t>(first))), leaves);
    const int32_t fits = floor_log2(static_cast<uint32_t>(end - first));
    return first + (1 << (first == 0 ? fits : min_i32(fits, trailing_zeros(static_cast<uint32_t>(first)))));
}

// ---- where nodes lie ------------------------------------------------------------------------------------------------
// A CTA's first piece may end a sequence that others began, and its last one begin a sequence that others end: it has a
// set of nodes for either. Most sets hold one node. So the first nodes of all sets lie together, which keeps the reader
// to few pages of memory, and the others behind them.

// Nodes of a set at most: on either side of the tree's middle one of each size.
FOVEAL_HOST_DEVICE constexpr int32_t nodes_of_set(int32_t levels) { return 2 * levels; }

struct NodeSets {
    int32_t heads;
    int32_t teams;
    int32_t levels;

    FOVEAL_HOST_DEVICE constexpr int32_t count() const { return heads * 2 * teams; }

    // The set of a team's piece that begins its sequence, or of one that does not.
    FOVEAL_HOST_DEVICE constexpr int32_t set_of(int32_t team, int32_t head, bool begins) const {
        return (head * 2 + (begins ? 1 : 0)) * teams + team;
    }
    // The place of its n-th node.
    FOVEAL_HOST_DEVICE constexpr int32_t node(int32_t set, int32_t n) const {
        return n == 0 ? set : count() + set * (nodes_of_set(levels) - 1) + n - 1;
    }
    FOVEAL_HOST_DEVICE constexpr int64_t nodes() const { return int64_t{count()} * nodes_of_set(levels); }
};

}  // namespace foveal::sm90
