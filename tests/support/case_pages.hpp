// The pages of a case's keys and the bits of its tree mask: functions of the case alone, for tensors and oracle alike.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

// Pages of k and v: those of every sequence, in an order of their own, and a few that none has.
int64_t page_count(const Case& c);
// Entries of a sequence that the table has room for, one more than its keys can need.
int64_t table_columns(const Case& c);
// Which page holds keys n * page_size to (n + 1) * page_size - 1 of the sequence.
int64_t page_at(const Case& c, int64_t sequence, int64_t n);

// The arguments. Entries behind a sequence's last key are no pages.
std::vector<int32_t> block_table(const Case& c);   // [b, table_columns]
std::vector<int32_t> page_indptr(const Case& c);   // [b + 1]
std::vector<int32_t> page_indices(const Case& c);  // those of all sequences, and some behind

// How many keys each sequence uses, where the arguments must say so.
std::optional<std::vector<int64_t>> lengths_to_give(const Case& c);

// A node of the tree sees itself and its ancestors. Words are so few that long sequences have nodes without bits.
int64_t tree_words(const Case& c);
std::vector<int32_t> tree_mask(const Case& c);  // [b, s_q, words] or [total_q, words]; bits of no node are garbage
// What query i says of a key: 0, it is hidden.
bool tree_hides(const Case& c, int64_t sequence, int64_t i, int64_t key);

}  // namespace foveal_testing
