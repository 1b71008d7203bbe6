#include "tests/support/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <set>

#include "tests/support/dropout_oracle.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/sum_order.hpp"

namespace foveal_testing {
namespace {

constexpr double kInfinity = HUGE_VAL;

// scores[j - seen.first] = q . k_j, each summed over the channels in that order.
template <class Real>
void dot_products(const float* q, const KeyValueHead& head, int64_t channels, KeyInterval seen,
                  std::vector<Real>& scores, int order = 0) {
    scores.assign(static_cast<size_t>(seen.last - seen.first), Real{0});
    thread_local std::vector<double> part;
    part.assign(cuts_off<Real>(order) ? scores.size() : 0, 0.0);
    const auto add = [&](int64_t c, bool to_part) {
        const Real q_c = q[c];
        const float* k = head.k_transposed.data() + c * head.len_k + seen.first;
        if (to_part)
            for (size_t j = 0; j < part.size(); ++j) part[j] += static_cast<double>(q_c) * static_cast<double>(k[j]);
        else
            for (size_t j = 0; j < scores.size(); ++j) scores[j] += q_c * static_cast<Real>(k[j]);
    };
    add_terms(channels, order, cuts_off<Real>(order), add, [&] {
        for (size_t j = 0; j < part.size(); ++j) part[j] = scores[j] = cut_off(part[j]);
    });
}

// out[c] = sum over j of weights[j] v_j[c], in the order of the keys. A key without weight, that a mask hides, say,
// adds nothing, whatever its v is; one that dropout drops adds 0 times its v.
template <class Real>
void weighted_sum(const std::vector<Real>& weights, const std::vector<float>& kept, const KeyValueHead& head,
                  KeyInterval seen, std::vector<Real>& out) {
    std::fill(out.begin(), out.end(), Real{0});
    for (size_t j = 0; j < weights.size(); ++j) {
        if (weights[j] == 0) continue;
        const size_t key = static_cast<size_t>(seen.first) + j;
        const Real weight = kept.empty() || kept[key] != 0 ? weights[j] : Real{0};
        const float* v = head.v.data() + key * out.size();
        for (size_t c = 0; c < out.size(); ++c) out[c] += weight * static_cast<Real>(v[c]);
    }
}

// Scores from dot products, in the order of foveal.h and in the arithmetic of Real; those of hidden keys are -inf.
// tanh: of the softcap, where there is one and it is asked.
template <class Real>
void finish_scores(const Case& c, int64_t position, KeyInterval seen, const RowOptions& options, std::vector<Real>& x,
                   std::vector<Real>* tanh = nullptr) {
    const auto scale = static_cast<Real>(c.effective_scale());
    const auto cap = static_cast<Real>(c.softcap);
    for (Real& value : x) value *= scale;
    if (cap > 0) {
        for (Real& value : x) value = std::tanh(value / cap);
        if (tanh != nullptr) *tanh = x;
        for (Real& value : x) value *= cap;
    }
    if (options.slope != 0) {
        for (size_t n = 0; n < x.size(); ++n) {
            const int64_t distance = std::abs(position - seen.first - static_cast<int64_t>(n));
            x[n] -= static_cast<Real>(options.slope) * static_cast<Real>(distance);
        }
    }
    constexpr Real kHidden = -std::numeric_limits<Real>::infinity();
    const auto first = static_cast<size_t>(seen.first);
    if (!options.bias.empty()) {
        for (size_t n = 0; n < x.size(); ++n) {
            const auto bias = static_cast<Real>(options.bias[first + n]);
            x[n] = bias == kHidden ? kHidden : x[n] + bias;
        }
    }
    if (!options.visible.empty()) {
        for (size_t n = 0; n < x.size(); ++n) x[n] = options.visible[first + n] == 0 ? kHidden : x[n];
    }
}

// Of the scores and `largest`. std::max would lose a NaN.
template <class Real>
Real largest_of(const std::vector<Real>& x, Real largest = -std::numeric_limits<Real>::infinity()) {
    for (const Real value : x) largest = value > largest || std::isnan(value) ? value : largest;
    return largest;
}

int64_t offset_of(const Case& c, int64_t len_q, int64_t len_k, std::optional<int64_t> query_offset) {
    return query_offset ? *query_offset : c.top_left ? 0 : len_k - len_q;
}

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

}  // namespace

KeyInterval keys_seen_by(const Case& c, int64_t i, int64_t len_q, int64_t len_k, std::optional<int64_t> query_offset) {
    const int64_t position = i + offset_of(c, len_q, len_k, query_offset);
    KeyInterval seen{0, len_k};
    if (c.window_left != FOVEAL_UNLIMITED) seen.first = std::max(seen.first, position - c.window_left);
    if (c.window_right != FOVEAL_UNLIMITED) seen.last = std::min(seen.last, position + c.window_right + 1);
    if (c.chunk > 0) {
        const int64_t chunk_begin = floor_divide(position, c.chunk) * c.chunk;
        seen.first = std::max(seen.first, chunk_begin);
        seen.last = std::min(seen.last, chunk_begin + c.chunk);
    }
    return seen.first < seen.last ? seen : KeyInterval{0, 0};
}

KeyInterval keys_seen_by_any(const Case& c, int64_t sequence) {
    const int64_t len_q = c.used_q(sequence), len_k = c.used_k(sequence);
    KeyInterval all{0, 0};
    for (int64_t i = 0; i < len_q; ++i) {
        const KeyInterval seen = keys_seen_by(c, i, len_q, len_k, c.offset_of(sequence));
        if (seen.first == seen.last) continue;
        all =
            all.first == all.last ? seen : KeyInterval{std::min(all.first, seen.first), std::max(all.last, seen.last)};
    }
    return all;
}

bool may_reach(const Case& c, int64_t i, int64_t len_q, int64_t len_k, int64_t key,
               std::optional<int64_t> query_offset) {
    constexpr int64_t kRows = 128, kKeys = 128;
    const int64_t first_row = i / kRows * kRows, first_key = key / kKeys * kKeys;
    for (int64_t row = first_row; row < std::min(first_row + kRows, len_q); ++row) {
        const KeyInterval seen = keys_seen_by(c, row, len_q, len_k, query_offset);
        if (seen.first < seen.last && seen.first < first_key + kKeys && seen.last > first_key) return true;
    }
    return false;
}

void oracle_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                const RowOptions& options, OracleRow& row) {
    row.out.assign(static_cast<size_t>(c.head_dim_v), 0.0);
    const KeyInterval seen = keys_seen_by(c, i, len_q, head.len_k, options.query_offset);

    thread_local std::vector<double> x;
    dot_products(q, head, c.head_dim, seen, x);
    finish_scores(c, i + offset_of(c, len_q, head.len_k, options.query_offset), seen, options, x);
    row.empty = largest_of(x) == -kInfinity;  // no key is seen, or every score is -inf: the same
    const double largest = largest_of(x, options.sink ? static_cast<double>(*options.sink) : -kInfinity);
    row.lse = largest;
    if (row.empty) return;
    double sum = options.sink ? std::exp(static_cast<double>(*options.sink) - largest) : 0;
    for (double& value : x) sum += value = std::exp(value - largest);
    weighted_sum(x, options.kept, head, seen, row.out);
    for (double& value : row.out) value = value / sum * dropout_factor(c.dropout);
    row.lse = largest + std::log(sum);
}

template <class Real>
void scores_of_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                   const RowOptions& options, KeyInterval keys, std::vector<Real>& x, std::vector<Real>& tanh,
                   int order) {
    dot_products(q, head, c.head_dim, keys, x, order);
    finish_scores(c, i + offset_of(c, len_q, head.len_k, options.query_offset), keys, options, x, &tanh);
}
template void scores_of_row(const Case&, int64_t, int64_t, const float*, const KeyValueHead&, const RowOptions&,
                            KeyInterval, std::vector<double>&, std::vector<double>&, int);
template void scores_of_row(const Case&, int64_t, int64_t, const float*, const KeyValueHead&, const RowOptions&,
                            KeyInterval, std::vector<float>&, std::vector<float>&, int);

void reference_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                   const RowOptions& options, ReferenceRow& row, float above, bool e4m3_p) {
    row.out.assign(static_cast<size_t>(c.head_dim_v), 0.0f);
    const KeyInterval seen = keys_seen_by(c, i, len_q, head.len_k, options.query_offset);

    thread_local std::vector<float> x;
    dot_products(q, head, c.head_dim, seen, x);
    finish_scores(c, i + offset_of(c, len_q, head.len_k, options.query_offset), seen, options, x);
    if (largest_of(x) == -HUGE_VALF) return;
    const float largest = largest_of(x, options.sink.value_or(-HUGE_VALF)) + above;
    float sum = options.sink ? std::exp(*options.sink - largest) : 0;
    for (float& value : x) {
        value = std::exp(value - largest);
        sum += value;
        value = e4m3_p ? round_to(FOVEAL_E4M3, value * 256) / 256 : round_to(c.computed_dtype(), value);
    }
    weighted_sum(x, options.kept, head, seen, row.out);
    const auto factor = static_cast<float>(dropout_factor(c.dropout));
    for (float& value : row.out) value = round_to(c.out_dtype(), value / sum * factor);
}

std::vector<RowGroup> all_rows(const Case& c, int64_t rows_a_group) {
    std::vector<RowGroup> groups;
    for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
        for (int64_t head_k = 0; head_k < c.heads_k; ++head_k) {
            RowGroup group{sequence, head_k, {}};
            for (int64_t head = head_k * c.group(); head < (head_k + 1) * c.group(); ++head) {
                for (int64_t row = 0; row < c.used_q(sequence); ++row) {
                    group.rows.push_back({head, row});
                    if (static_cast<int64_t>(group.rows.size()) < rows_a_group) continue;
                    groups.push_back(group);
                    group.rows.clear();
                }
            }
            if (!group.rows.empty()) groups.push_back(std::move(group));
        }
    }
    return groups;
}

std::vector<RowGroup> sampled_rows(const Case& c, int64_t budget) {
    std::vector<int64_t> sequences;
    for (int64_t i = 0; i < c.batch; ++i) {
        if (c.used_q(i) > 0) sequences.push_back(i);
    }
    if (sequences.empty()) return {};

    std::mt19937_64 random(c.seed);
    const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    constexpr int64_t kGroups = 16;
    const int64_t rows_a_group = std::max<int64_t>(budget / kGroups, 8);
    std::vector<RowGroup> groups;
    for (int64_t g = 0; g < kGroups; ++g) {
        const auto count = static_cast<int64_t>(sequences.size());
        const int64_t sequence = sequences[static_cast<size_t>(g == 0 ? 0 : g == 1 ? count - 1 : below(count))];
        const int64_t head_k = g == 0 ? 0 : g == 1 ? c.heads_k - 1 : below(c.heads_k);
        const int64_t rows = c.used_q(sequence);
        const int64_t edge = below(rows) / 64 * 64;
        std::set<int64_t> chosen = {0, rows - 1, edge, std::max<int64_t>(edge - 1, 0)};
        while (static_cast<int64_t>(chosen.size()) < std::min(rows, rows_a_group)) chosen.insert(below(rows));
        RowGroup group{sequence, head_k, {}};
        for (const int64_t row : chosen) group.rows.push_back({head_k * c.group() + below(c.group()), row});
        groups.push_back(std::move(group));
    }
    return groups;
}

}  // namespace foveal_testing
