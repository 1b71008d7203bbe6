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
//
// Where shares would be uneven, the last eighth of the blocks is not dealt out but drawn: cut into lots, of which a CTA
// draws the next by ticket whenever it has nothing left to do. Pieces of teams come first in the numbering of pieces,
// those of lots follow.
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

// Lots are so large that there are fewer than this for each team.
inline constexpr uint32_t kLotsOfTeam = 5;

struct Deal {
    uint32_t blocks;  // of all sequences; one without keys counts as a block
    uint32_t dealt;   // the first of them, that teams get
    uint32_t share;   // of a team
    uint32_t lots;    // into which the rest is cut
    int32_t log2_lot;
};

// What the sequences' numbers of blocks are to each other. One sequence alone has too few leaves to be cut into lots.
enum class Evenness : int32_t { alone, equal, different };

FOVEAL_HOST_DEVICE Deal deal_of(uint32_t blocks, const Teams& teams, Evenness evenness) {
    constexpr uint32_t kLotsFrom = 128;      // blocks a team: below, rounding costs nothing that the memory notices
    constexpr int32_t kLog2DrawnPart = 3;    // an eighth
    constexpr int32_t kLog2LeastLot = 3;
    const uint32_t rounded_up = (blocks > 0 ? blocks : 1) + teams.count - 1;
    const uint32_t mean = teams.log2 >= 0 ? rounded_up >> teams.log2 : rounded_up / teams.count;
    const int32_t log2 = floor_log2(mean);
    // A power of two or one and a half of one: equal sequences are then cut where their trees are.
    const uint32_t rounded = mean == 1u << log2                        ? mean
                             : log2 > 0 && mean <= 3u << (log2 - 1) ? 3u << (log2 - 1)
                                                                       : 2u << log2;
    const bool draws = evenness == Evenness::different || (evenness == Evenness::equal && rounded != mean);
    if (mean < kLotsFrom || !draws) return {blocks, blocks, rounded, 0, kLog2LeastLot};
    const uint32_t drawn = mean >> kLog2DrawnPart;
    const int32_t log2_lot = max_i32(kLog2LeastLot, floor_log2(drawn) - 1);
    const uint32_t share = (mean - drawn) >> log2_lot << log2_lot;
    const uint32_t dealt = share * teams.count < blocks ? share * teams.count : blocks;
    return {blocks, dealt, share, (blocks - dealt + (1u << log2_lot) - 1) >> log2_lot, log2_lot};
}

// Where piece number `piece` begins, among all blocks, before it is rounded.
FOVEAL_HOST_DEVICE uint32_t bound_of(uint32_t piece, const Deal& deal, const Teams& teams) {
    const uint32_t bound = piece < teams.count ? piece * deal.share
                                               : deal.dealt + ((piece - teams.count) << deal.log2_lot);
    return bound < deal.blocks ? bound : deal.blocks;
}

// To a multiple of how many blocks, as a power of two, that bound is rounded in a sequence with such leaves. A quarter
// of a share, at most eight blocks, is too little to matter; a lot is rounded to whole lots, so that it is one node or
// two.
FOVEAL_HOST_DEVICE int32_t log2_grain(uint32_t piece, const Leaves& leaves, const Deal& deal, const Teams& teams) {
    const int32_t grain = deal.lots > 0 && piece >= teams.count
                              ? deal.log2_lot
                              : min_i32(3, floor_log2(deal.share) - 2);
    return max_i32(leaves.log2_blocks, grain);
}

// Blocks [begin, end) of a sequence.
struct Piece {
    int32_t begin, end;
    FOVEAL_HOST_DEVICE bool is_empty() const { return begin >= end; }
};

// Where piece number `piece` begins in a sequence of `blocks` blocks that has `before` blocks of others before it.
FOVEAL_HOST_DEVICE int32_t cut_of(uint32_t piece, uint32_t before, int32_t blocks, const Leaves& leaves,
                                  const Deal& deal, const Teams& teams) {
    const uint32_t bound = bound_of(piece, deal, teams);
    if (bound <= before) return 0;
    if (bound >= before + static_cast<uint32_t>(blocks)) return blocks;
    const int32_t log2 = log2_grain(piece, leaves, deal, teams);
    const int32_t cut = (static_cast<int32_t>(bound - before) + ((1 << log2) >> 1)) >> log2 << log2;
    return min_i32(cut, blocks);
}

FOVEAL_HOST_DEVICE Piece piece_of(uint32_t piece, uint32_t before, int32_t blocks, const Leaves& leaves,
                                  const Deal& deal, const Teams& teams) {
    return {cut_of(piece, before, blocks, leaves, deal, teams), cut_of(piece + 1, before, blocks, leaves, deal, teams)};
}

// A number that no piece of a sequence is below, if it has `before` blocks before it.
FOVEAL_HOST_DEVICE uint32_t first_piece_of(uint32_t before, const Deal& deal, const Teams& teams) {
    uint32_t piece = 0;
    if (before >= deal.dealt && deal.lots > 0)
        piece = teams.count + ((before - deal.dealt) >> deal.log2_lot);
    else  // one too few or too many where the division is rounded
        piece = static_cast<uint32_t>(static_cast<float>(before) / static_cast<float>(deal.share));
    return piece > 2 ? piece - 2 : 0;
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
FOVEAL_HOST_DEVICE constexpr int32_t nodes_of_share(int32_t levels) { return 2 * levels; }
inline constexpr int32_t kNodesOfLot = 2;

struct NodeSets {
    int32_t heads;
    int32_t teams;
    int32_t levels;

    FOVEAL_HOST_DEVICE constexpr int32_t pieces() const {  // that have sets
        return teams + teams * static_cast<int32_t>(kLotsOfTeam);
    }
    FOVEAL_HOST_DEVICE constexpr int32_t of_shares() const { return heads * 2 * teams; }
    FOVEAL_HOST_DEVICE constexpr int32_t count() const { return heads * 2 * pieces(); }

    // The set of a piece that begins its sequence, or of one that does not.
    FOVEAL_HOST_DEVICE constexpr int32_t set_of(int32_t piece, int32_t head, bool begins) const {
        const int32_t side = head * 2 + (begins ? 1 : 0);
        return piece < teams ? side * teams + piece : of_shares() + side * (pieces() - teams) + piece - teams;
    }
    // The place of its n-th node.
    FOVEAL_HOST_DEVICE constexpr int32_t node(int32_t set, int32_t n) const {
        if (n == 0) return set;
        const int32_t more = nodes_of_share(levels) - 1;
        if (set < of_shares()) return count() + set * more + n - 1;
        return count() + of_shares() * more + (set - of_shares()) * (kNodesOfLot - 1) + n - 1;
    }
    FOVEAL_HOST_DEVICE constexpr int64_t nodes() const {
        return int64_t{count()} + int64_t{of_shares()} * (nodes_of_share(levels) - 1) +
               int64_t{count() - of_shares()} * (kNodesOfLot - 1);
    }
};

}  // namespace foveal::sm90
