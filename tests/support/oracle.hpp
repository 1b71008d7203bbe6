// Attention written down as the contract states it, one row at a time: once in float64 (the oracle), once as the
// textbook does it in the input's own precision (the reference that the tolerance measures by). Shares nothing with
// the library.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

// One sequence and key/value head, as floats that hold the inputs exactly.
struct KeyValueHead {
    int64_t len_k = 0;
    std::vector<float> k_transposed;  // [d, len_k]
    std::vector<float> v;             // [len_k, d_v]
};

struct OracleRow {
    std::vector<double> out;  // [d_v]
    double lse = 0;
    bool empty = false;  // it sees no key: out is 0
};

struct ReferenceRow {
    std::vector<float> out;  // [d_v], rounded to out's type
};

// What else a row's scores depend on, besides the case's own numbers.
struct RowOptions {
    float slope = 0;                           // of ALiBi
    std::optional<float> sink = {};            // logit
    std::vector<float> bias = {};              // [len_k], or empty
    std::vector<float> visible = {};           // [len_k] of the boolean and the tree mask, or empty: 0 hides the key
    std::vector<float> kept = {};              // [len_k] of dropout, or empty: 0 drops the key's weight
    std::optional<int64_t> query_offset = {};  // off; absent: what the case's alignment says
};

// The keys that window and chunks let row i of len_q queries see, first and one past the last (contract 1.3).
struct KeyInterval {
    int64_t first, last;
};
KeyInterval keys_seen_by(const Case& c, int64_t i, int64_t len_q, int64_t len_k,
                         std::optional<int64_t> query_offset = {});
// Those that some row of the sequence sees. The others never reach a result (contract 1.6).
KeyInterval keys_seen_by_any(const Case& c, int64_t sequence);
// May a NaN in V at `key`, which row i does not see, reach it? Only if another of its 128 rows sees one of the key's
// 128 keys (contract 1.6).
bool may_reach(const Case& c, int64_t i, int64_t len_q, int64_t len_k, int64_t key,
               std::optional<int64_t> query_offset = {});

// Scores x of row i of the keys in `keys`, all of which it sees, in the arithmetic of Real (double or float): -inf
// where a mask, a tree or a bias hides the key. With a softcap, tanh gets the hyperbolic tangent itself. order: in
// which the products of a row are added (sum_order.hpp).
template <class Real>
void scores_of_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                   const RowOptions& options, KeyInterval keys, std::vector<Real>& x, std::vector<Real>& tanh,
                   int order = 0);

// q: [d]
void oracle_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                const RowOptions& options, OracleRow& row);
// The textbook takes exp(x - largest x). Any other number in its place is the same softmax, with P rounded elsewhere:
// `above` the largest x. e4m3_p: P is rounded to e4m3, the largest being 256 then, as tensor cores need it that
// multiply V in e4m3.
void reference_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                   const RowOptions& options, ReferenceRow& row, float above = 0, bool e4m3_p = false);

// A row of the result to be checked, and rows of one sequence and key/value head together.
struct RowId {
    int64_t head_q, row;
};
struct RowGroup {
    int64_t sequence, head_k;
    std::vector<RowId> rows;
};

// Every used row, in groups of at most `rows_a_group`.
std::vector<RowGroup> all_rows(const Case& c, int64_t rows_a_group);
// About `budget` rows: of the first, last and some random sequences and heads the rows at both ends, at the edges of
// 64-row tiles, and random ones.
std::vector<RowGroup> sampled_rows(const Case& c, int64_t budget);

}  // namespace foveal_testing
