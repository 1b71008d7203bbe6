#include "tests/support/case_pages.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/support/input_values.hpp"

namespace foveal_testing {
namespace {

constexpr int64_t kPagesOfNobody = 3;
constexpr int64_t kBitsOfWord = 32;

int64_t pages_of(const Case& c, int64_t keys) { return (keys + c.page_size - 1) / c.page_size; }
int64_t pages_of_longest(const Case& c) { return pages_of(c, c.rows_k); }

// What stands in a table where no key is.
int32_t garbage(const Case& c, int64_t n) {
    constexpr int32_t kLowest = std::numeric_limits<int32_t>::min(), kHighest = std::numeric_limits<int32_t>::max();
    const int32_t values[] = {-1, kLowest, static_cast<int32_t>(page_count(c)), kHighest, -7};
    return values[n % 5];
}

int64_t parent_of(int64_t node) {
    return node == 0 ? -1 : static_cast<int64_t>(mix64(static_cast<uint64_t>(node)) % static_cast<uint64_t>(node));
}

bool is_ancestor_or_self(int64_t candidate, int64_t node) {
    while (node > candidate) node = parent_of(node);
    return node == candidate;
}

int64_t longest_used_q(const Case& c) {
    int64_t longest = 0;
    for (int64_t i = 0; i < c.batch; ++i) longest = std::max(longest, c.used_q(i));
    return longest;
}

}  // namespace

int64_t page_count(const Case& c) {
    const int64_t common = pages_of(c, c.common);
    return common + c.batch * (pages_of_longest(c) - common) + kPagesOfNobody;
}

int64_t table_columns(const Case& c) { return pages_of_longest(c) + 1; }

// A permutation: steps of a number that shares no divisor with the number of pages.
int64_t page_at(const Case& c, int64_t sequence, int64_t n) {
    const int64_t count = page_count(c);
    int64_t step = std::max<int64_t>(count * 5 / 8 + c.page_order, 1);
    while (std::gcd(step, count) != 1) ++step;
    const int64_t common = pages_of(c, c.common);
    const int64_t index = n < common ? n : sequence * (pages_of_longest(c) - common) + n;
    return (index * (step % count) + c.page_order) % count;
}

std::vector<int32_t> block_table(const Case& c) {
    std::vector<int32_t> table;
    for (int64_t sequence = 0; sequence < c.batch; ++sequence)
        for (int64_t n = 0; n < table_columns(c); ++n)
            table.push_back(n < pages_of(c, c.used_k(sequence)) ? static_cast<int32_t>(page_at(c, sequence, n))
                                                                : garbage(c, n));
    return table;
}

// Every other sequence has a page more than it needs.
std::vector<int32_t> page_indptr(const Case& c) {
    std::vector<int32_t> ends = {0};
    for (int64_t sequence = 0; sequence < c.batch; ++sequence)
        ends.push_back(ends.back() + static_cast<int32_t>(pages_of(c, c.used_k(sequence)) + sequence % 2));
    return ends;
}

std::vector<int32_t> page_indices(const Case& c) {
    std::vector<int32_t> indices;
    for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
        const int64_t used = pages_of(c, c.used_k(sequence));
        for (int64_t n = 0; n < used; ++n) indices.push_back(static_cast<int32_t>(page_at(c, sequence, n)));
        if (sequence % 2 == 1) indices.push_back(garbage(c, used));
    }
    for (int64_t n = 0; n < pages_of_longest(c); ++n) indices.push_back(garbage(c, n));
    return indices;
}

std::optional<std::vector<int64_t>> lengths_to_give(const Case& c) {
    const bool needed = c.page_size > 0 || (c.varlen && !c.varlen_k);
    if (c.seqused_k || !needed) return c.seqused_k;
    return std::vector<int64_t>(static_cast<size_t>(c.batch), c.rows_k);
}

int64_t tree_words(const Case& c) {
    const int64_t words = (longest_used_q(c) + kBitsOfWord - 1) / kBitsOfWord;
    return std::clamp<int64_t>(words, 1, 2);
}

bool tree_hides(const Case& c, int64_t sequence, int64_t i, int64_t key) {
    const int64_t nodes = c.used_q(sequence), node = key - (c.used_k(sequence) - nodes);
    if (node < 0 || node >= std::min(nodes, tree_words(c) * kBitsOfWord)) return false;
    return !is_ancestor_or_self(node, i);
}

std::vector<int32_t> tree_mask(const Case& c) {
    const int64_t words = tree_words(c);
    const int64_t rows = c.varlen ? c.rows_q : c.batch * c.rows_q;
    std::vector<int32_t> mask(static_cast<size_t>(rows * words), 0x5A5A5A5A);
    for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
        const int64_t first = c.varlen ? c.first_row_q(sequence) : sequence * c.rows_q;
        const int64_t nodes = c.used_q(sequence), first_key = c.used_k(sequence) - nodes;
        for (int64_t i = 0; i < nodes; ++i) {
            for (int64_t node = 0; node < std::min(nodes, words * kBitsOfWord); ++node) {
                int32_t& word = mask[static_cast<size_t>((first + i) * words + node / kBitsOfWord)];
                const uint32_t bit = 1u << (node % kBitsOfWord);
                const auto bits = static_cast<uint32_t>(word);
                word = static_cast<int32_t>(tree_hides(c, sequence, i, first_key + node) ? bits & ~bit : bits | bit);
            }
        }
    }
    return mask;
}

}  // namespace foveal_testing
