#include "oracle.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "number_formats.hpp"

namespace foveal_testing {
namespace {

constexpr double kInfinity = HUGE_VAL;

// scores[j - seen.first] = q . k_j, each summed over the channels in order.
template <class Real>
void dot_products(const float* q, const KeyValueHead& head, int64_t channels, KeyInterval seen,
                  std::vector<Real>& scores) {
    const auto count = static_cast<size_t>(seen.last - seen.first);
    scores.assign(count, Real{0});
    for (int64_t c = 0; c < channels; ++c) {
        const Real q_c = q[c];
        const float* k = head.k_transposed.data() + c * head.len_k + seen.first;
        for (size_t j = 0; j < count; ++j) scores[j] += q_c * static_cast<Real>(k[j]);
    }
}

// out[c] = sum over j of weights[j] v_j[c], in the order of the keys.
template <class Real>
void weighted_sum(const std::vector<Real>& weights, const KeyValueHead& head, KeyInterval seen,
                  std::vector<Real>& out) {
    std::fill(out.begin(), out.end(), Real{0});
    for (size_t j = 0; j < weights.size(); ++j) {
        const float* v = head.v.data() + (static_cast<size_t>(seen.first) + j) * out.size();
        for (size_t c = 0; c < out.size(); ++c) out[c] += weights[j] * static_cast<Real>(v[c]);
    }
}

}  // namespace

KeyInterval keys_seen_by(const Case& c, int64_t i, int64_t len_q, int64_t len_k) {
    const int64_t off = c.top_left ? 0 : len_k - len_q;
    KeyInterval seen{0, len_k};
    if (c.window_left != FOVEAL_UNLIMITED) seen.first = std::max(seen.first, i + off - c.window_left);
    if (c.window_right != FOVEAL_UNLIMITED) seen.last = std::min(seen.last, i + off + c.window_right + 1);
    return seen;
}

void oracle_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head, OracleRow& row) {
    row.out.assign(static_cast<size_t>(c.head_dim_v), 0.0);
    row.lse = -kInfinity;
    const KeyInterval seen = keys_seen_by(c, i, len_q, head.len_k);
    if (seen.first >= seen.last) return;

    thread_local std::vector<double> x;
    dot_products(q, head, c.head_dim, seen, x);
    const double scale = c.effective_scale();
    for (double& value : x) value *= scale;
    // std::max would lose a NaN.
    double largest = -kInfinity;
    for (const double value : x) largest = value > largest || std::isnan(value) ? value : largest;
    if (largest == -kInfinity) return;  // every score is -inf: as if no key were seen
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - largest);
    weighted_sum(x, head, seen, row.out);
    for (double& value : row.out) value /= sum;
    row.lse = largest + std::log(sum);
}

void reference_row(const Case& c, int64_t i, int64_t len_q, const float* q, const KeyValueHead& head,
                   ReferenceRow& row) {
    row.out.assign(static_cast<size_t>(c.head_dim_v), 0.0f);
    const KeyInterval seen = keys_seen_by(c, i, len_q, head.len_k);
    if (seen.first >= seen.last) return;

    thread_local std::vector<float> x;
    dot_products(q, head, c.head_dim, seen, x);
    const auto scale = static_cast<float>(c.effective_scale());
    float largest = -HUGE_VALF;
    for (float& value : x) {
        value *= scale;
        largest = value > largest || std::isnan(value) ? value : largest;
    }
    if (largest == -HUGE_VALF) return;
    float sum = 0;
    for (float& value : x) {
        value = std::exp(value - largest);
        sum += value;
        value = round_to(c.dtype, value);
    }
    weighted_sum(x, head, seen, row.out);
    for (float& value : row.out) value = round_to(c.dtype, value / sum);
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
