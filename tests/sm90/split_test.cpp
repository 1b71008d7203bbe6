// src/sm90/decode/split.hpp: however the work is dealt out, every sequence is added up along its own tree.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "sm90/decode/split.hpp"

namespace foveal::sm90 {
namespace {

// In place of a node's values: a hash of how it was put together. 0: there is none.
using Hash = uint64_t;

Hash mixed(Hash x) {
    x ^= x >> 31;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    return x | 1;
}
Hash of_leaf(int32_t leaf) { return mixed(static_cast<Hash>(leaf) + 0x9e3779b97f4a7c15u); }
Hash joined(Hash left, Hash right) {
    if (right == 0) return left;
    if (left == 0) return 1;  // no left child: no tree has that
    return mixed(left * 0x94d049bb133111ebu ^ (right + 0x2545F4914F6CDD1Du) * 0xd6e8feb86659fd93u);
}

// The tree's root, straight from its definition.
Hash root_of(int32_t first, int32_t log2, int32_t leaves) {
    if (first >= leaves) return 0;
    if (log2 == 0) return of_leaf(first);
    return joined(root_of(first, log2 - 1, leaves), root_of(first + (1 << (log2 - 1)), log2 - 1, leaves));
}
Hash root_of(int32_t leaves) {
    int32_t log2 = 0;
    while (1 << log2 < leaves) ++log2;
    return root_of(0, log2, leaves);
}

struct Batch {
    Teams teams;
    int32_t levels;
    std::vector<int32_t> blocks;  // of each sequence
    std::vector<uint32_t> before;
    Deal deal{};

    Leaves leaves(size_t i) const { return leaves_of(blocks[i], levels); }
    Piece piece(uint32_t number, size_t i) const { return piece_of(number, before[i], blocks[i], leaves(i), deal); }
    std::string text() const {
        return "teams " + std::to_string(teams.count) + ", levels " + std::to_string(levels) + ", sequences " +
               std::to_string(blocks.size()) + ", share " + std::to_string(deal.share);
    }
};

int32_t drawn_blocks(std::mt19937& random, uint32_t kind, uint32_t iteration) {
    const auto below = [&random](uint32_t n) { return static_cast<int32_t>(random() % n); };
    switch (kind) {
        case 0:
            return 1 + below(4);
        case 1:
            return 1 + below(600);
        case 2:
            return 1 << iteration % 12;
        case 3:
            return below(4) != 0 ? 1 + below(5) : 1 + below(5000);
        default:
            return 1 + static_cast<int32_t>(iteration % 777);
    }
}

Batch drawn_batch(std::mt19937& random, uint32_t iteration) {
    constexpr uint32_t kTeams[] = {1, 2, 3, 7, 8, 16, 22, 32, 33, 44, 64, 66, 128, 132, 264};
    Batch batch;
    const uint32_t teams = kTeams[random() % std::size(kTeams)];
    batch.teams = {teams, (teams & (teams - 1)) == 0 ? trailing_zeros(teams) : -1};
    batch.levels = 4 + static_cast<int32_t>(random() % 3);
    const auto sequences = static_cast<uint32_t>(1 + random() % (iteration % 5 == 0 ? 300 : 12)),
               kind = static_cast<uint32_t>(random() % 5);
    uint32_t all = 0;
    for (uint32_t i = 0; i < sequences; ++i) {
        batch.blocks.push_back(drawn_blocks(random, kind, iteration));
        batch.before.push_back(all);
        all += static_cast<uint32_t>(batch.blocks.back());
    }
    batch.deal = deal_of(all, batch.teams);
    return batch;
}

struct Node {
    int32_t first;
    Hash hash;
};

// As the kernel's consumers take a piece: leaf by leaf, with a stack.
std::vector<Node> nodes_of_piece(int32_t begin, int32_t end, int32_t leaves, size_t& deepest) {
    std::vector<Hash> stack;
    std::vector<Node> nodes;
    for (int32_t leaf = begin; leaf < end; ++leaf) {
        Hash node = of_leaf(leaf);
        int32_t first = leaf;
        while (is_right_sibling(first, leaf, begin, leaves)) {
            first -= 1 << log2_of_node_below(first, begin);
            if (stack.empty()) return {};
            node = joined(stack.back(), node);
            stack.pop_back();
        }
        if (leaf + 1 != end && !is_left_apart(first, leaf, begin)) {
            stack.push_back(node);
            deepest = std::max(deepest, stack.size());
            continue;
        }
        for (const Hash waiting : stack) nodes.push_back({-1, waiting});
        stack.clear();
        nodes.push_back({first, node});
    }
    return nodes;
}

class Split : public ::testing::Test {
   protected:
    // All pieces of a sequence are worked out, and then put together as the kernel does it.
    void check_sequence(const Batch& batch, size_t i) {
        const Leaves leaves = batch.leaves(i);
        ASSERT_LE(leaves.count, 1 << batch.levels);
        ASSERT_EQ(leaves.count, (batch.blocks[i] + (1 << leaves.log2_blocks) - 1) >> leaves.log2_blocks);
        std::vector<Piece> pieces;
        std::map<int32_t, Hash> found;  // by the node's first leaf
        uint32_t begins = 0;
        int32_t covered = 0;
        for (uint32_t number = 0; number < batch.teams.count; ++number) {
            const Piece piece = batch.piece(number, i);
            if (piece.is_empty()) continue;
            ASSERT_EQ(piece.begin, covered);
            covered = piece.end;
            ASSERT_GE(number, first_team_of(batch.before[i], batch.deal));
            check_piece(batch, i, number, piece, found);
            pieces.push_back(piece);
            begins |= static_cast<uint32_t>(piece.begin >> leaves.log2_blocks);
        }
        ASSERT_EQ(covered, batch.blocks[i]);
        const int32_t apart = begins != 0 ? trailing_zeros(begins) : 0;
        for (const int32_t at_once : {4, 8, 16, 32}) {
            if (pieces.size() == 1) {
                ASSERT_EQ(found.size(), 1u);
                ASSERT_EQ(found.begin()->second, root_of(leaves.count));
                continue;
            }
            ASSERT_EQ(put_together(found, leaves.count, apart, at_once), root_of(leaves.count));
        }
    }

    void check_piece(const Batch& batch, size_t i, uint32_t number, Piece piece, std::map<int32_t, Hash>& found) {
        const Leaves leaves = batch.leaves(i);
        const int32_t begin = piece.begin >> leaves.log2_blocks,
                      end = (piece.end + (1 << leaves.log2_blocks) - 1) >> leaves.log2_blocks;
        ASSERT_EQ(begin << leaves.log2_blocks, piece.begin);
        if (piece.end != batch.blocks[i]) {
            ASSERT_EQ(end << leaves.log2_blocks, piece.end);
        }
        size_t deepest = 0;
        const std::vector<Node> nodes = nodes_of_piece(begin, end, leaves.count, deepest);
        ASSERT_LE(deepest, static_cast<size_t>(batch.levels));
        ASSERT_LE(nodes.size(), static_cast<size_t>(nodes_of_set(batch.levels)))
            << "piece " << number << " [" << piece.begin << ", " << piece.end << ") of " << batch.blocks[i];
        // The kernel finds out where nodes begin without working them out.
        int32_t first = begin;
        for (const Node& node : nodes) {
            ASSERT_LT(first, end);
            ASSERT_TRUE(node.first == -1 || node.first == first);
            found[first] = node.hash;
            first = end_of_node(first, end, leaves.count);
        }
        ASSERT_EQ(first, end);
    }

    static Hash put_together(const std::map<int32_t, Hash>& found, int32_t leaves, int32_t log2, int32_t at_once) {
        const int32_t places = (leaves + (1 << log2) - 1) >> log2;
        std::vector<Hash> nodes(static_cast<size_t>((places + at_once - 1) / at_once * at_once), 0);
        for (const auto& [first, hash] : found) {
            if (first & ((1 << log2) - 1)) return 0;
            nodes[static_cast<size_t>(first >> log2)] = hash;
        }
        std::vector<Hash> stack;
        Hash node = 0;
        for (int32_t round = 0; round * at_once < places; ++round) {
            for (int32_t distance = 1; distance < at_once; distance *= 2)
                for (int32_t i = 0; i < at_once; i += 2 * distance) {
                    Hash& left = nodes[static_cast<size_t>(round * at_once + i)];
                    const Hash right = nodes[static_cast<size_t>(round * at_once + i + distance)];
                    left = left == 0 && right == 0 ? 0 : joined(left, right);
                }
            node = nodes[static_cast<size_t>(round * at_once)];
            for (int32_t siblings = round; siblings % 2 == 1; siblings /= 2) {
                node = joined(stack.back(), node);
                stack.pop_back();
            }
            if ((round + 1) * at_once < places) stack.push_back(node);
        }
        for (; !stack.empty(); stack.pop_back()) node = joined(stack.back(), node);
        return node;
    }
};

TEST_F(Split, EveryDealingGivesTheTree) {
    std::mt19937 random(1);
    for (uint32_t iteration = 0; iteration < 20000; ++iteration) {
        const Batch batch = drawn_batch(random, iteration);
        for (size_t i = 0; i < batch.blocks.size(); ++i) {
            check_sequence(batch, i);
            if (HasFatalFailure()) FAIL() << "iteration " << iteration << ", sequence " << i << ": " << batch.text();
        }
    }
}

// What a CTA has of the batch: whole sequences, and at most one that it does not begin, its first, and one that it does
// not end, its last. So two sets of nodes are enough.
TEST_F(Split, OnlyTheEndsOfAShareArePartial) {
    std::mt19937 random(2);
    for (uint32_t iteration = 0; iteration < 5000; ++iteration) {
        const Batch batch = drawn_batch(random, iteration);
        for (uint32_t number = 0; number < batch.teams.count; ++number) {
            int32_t ended = 0, begun = 0;
            for (size_t i = 0; i < batch.blocks.size(); ++i) {
                const Piece piece = batch.piece(number, i);
                if (piece.is_empty() || (piece.begin == 0 && piece.end == batch.blocks[i])) continue;
                ended += piece.begin != 0;
                begun += piece.begin == 0;
            }
            ASSERT_LE(ended, 1) << batch.text();
            ASSERT_LE(begun, 1) << batch.text();
        }
    }
}

// So the counts of a batch of any size are no more than the teams.
TEST_F(Split, CutSequencesHaveCountsOfTheirOwn) {
    std::mt19937 random(3);
    int64_t cut = 0;
    for (uint32_t iteration = 0; iteration < 20000; ++iteration) {
        const Batch batch = drawn_batch(random, iteration);
        std::set<uint32_t> counts;
        for (size_t i = 0; i < batch.blocks.size(); ++i) {
            int32_t pieces = 0;
            for (uint32_t number = 0; number < batch.teams.count; ++number)
                pieces += !batch.piece(number, i).is_empty();
            if (pieces <= 1) continue;
            ++cut;
            const uint32_t count = count_of(batch.before[i], batch.deal);
            ASSERT_LT(count + 1, batch.teams.count) << batch.text();
            ASSERT_TRUE(counts.insert(count).second) << batch.text() << ", sequence " << i;
        }
    }
    EXPECT_GT(cut, 100000);
}

TEST_F(Split, NodesHavePlacesOfTheirOwn) {
    for (const NodeSets sets : {NodeSets{1, 1, 4}, NodeSets{3, 5, 6}, NodeSets{8, 32, 6}}) {
        std::set<int32_t> places;
        for (int32_t head = 0; head < sets.heads; ++head)
            for (int32_t piece = 0; piece < sets.teams; ++piece)
                for (const bool begins : {false, true})
                    for (int32_t n = 0; n < nodes_of_set(sets.levels); ++n)
                        places.insert(sets.node(sets.set_of(piece, head, begins), n));
        EXPECT_EQ(static_cast<int64_t>(places.size()), sets.nodes());
        EXPECT_EQ(*places.begin(), 0);
        EXPECT_EQ(*places.rbegin(), sets.nodes() - 1);
    }
}

// The leaves of a sequence follow from its own length; equal sequences are cut where their trees are, one node each.
TEST_F(Split, EqualSequencesAreOneNodeAPiece) {
    const Teams teams{32, 5};
    for (const int32_t blocks : {16, 64, 256, 1024, 2048}) {
        const Deal deal = deal_of(static_cast<uint32_t>(blocks), teams);
        const Leaves leaves = leaves_of(blocks, 6);
        for (uint32_t number = 0; number < teams.count; ++number) {
            const Piece piece = piece_of(number, 0, blocks, leaves, deal);
            if (piece.is_empty()) continue;
            size_t deepest = 0;
            const int32_t begin = piece.begin >> leaves.log2_blocks, end = piece.end >> leaves.log2_blocks;
            EXPECT_EQ(nodes_of_piece(begin, end, leaves.count, deepest).size(), 1u) << blocks << " blocks";
        }
    }
}

}  // namespace
}  // namespace foveal::sm90
