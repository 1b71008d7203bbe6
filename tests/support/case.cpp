#include "tests/support/case.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace foveal_testing {
namespace {

// Pairs of one sequence that window and chunks leave visible (contract 1.3).
double visible_pairs_of(const Case& c, int64_t len_q, int64_t len_k) {
    const int64_t off = c.top_left ? 0 : len_k - len_q;
    double pairs = 0;
    for (int64_t i = 0; i < len_q; ++i) {
        int64_t first = c.window_left == FOVEAL_UNLIMITED ? 0 : std::max<int64_t>(0, i + off - c.window_left);
        int64_t last = c.window_right == FOVEAL_UNLIMITED ? len_k - 1 : std::min(len_k - 1, i + off + c.window_right);
        if (c.chunk > 0 && i + off < 0) continue;  // the keys begin in a later chunk
        if (c.chunk > 0) {
            first = std::max(first, (i + off) / c.chunk * c.chunk);
            last = std::min(last, (i + off) / c.chunk * c.chunk + c.chunk - 1);
        }
        if (last >= first) pairs += static_cast<double>(last - first + 1);
    }
    return pairs;
}

}  // namespace

int64_t Case::length_q(int64_t sequence) const { return varlen ? lengths_q[static_cast<size_t>(sequence)] : rows_q; }

int64_t Case::length_k(int64_t sequence) const { return varlen ? lengths_k[static_cast<size_t>(sequence)] : rows_k; }

int64_t Case::used_q(int64_t sequence) const {
    return seqused_q ? (*seqused_q)[static_cast<size_t>(sequence)] : length_q(sequence);
}

int64_t Case::used_k(int64_t sequence) const {
    return seqused_k ? (*seqused_k)[static_cast<size_t>(sequence)] : length_k(sequence);
}

int64_t Case::first_row_q(int64_t sequence) const {
    return std::accumulate(lengths_q.begin(), lengths_q.begin() + (varlen ? sequence : 0), int64_t{0});
}

int64_t Case::first_row_k(int64_t sequence) const {
    return std::accumulate(lengths_k.begin(), lengths_k.begin() + (varlen ? sequence : 0), int64_t{0});
}

double Case::effective_scale() const {
    return scale ? static_cast<double>(*scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

double Case::visible_pairs() const {
    if (!varlen && !seqused_q && !seqused_k) {
        return static_cast<double>(batch) * visible_pairs_of(*this, rows_q, rows_k);
    }
    double pairs = 0;
    for (int64_t i = 0; i < batch; ++i) pairs += visible_pairs_of(*this, used_q(i), used_k(i));
    return pairs;
}

double Case::flops() const {
    return 2.0 * static_cast<double>(head_dim + head_dim_v) * visible_pairs() * static_cast<double>(heads_q);
}

double Case::min_bytes() const {
    double used_rows_q = 0;
    double used_rows_k = 0;
    for (int64_t i = 0; i < batch; ++i) {
        used_rows_q += static_cast<double>(used_q(i));
        used_rows_k += static_cast<double>(used_k(i));
    }
    const double channels = static_cast<double>(head_dim + head_dim_v);
    const double elements_q = used_rows_q * static_cast<double>(heads_q) * channels;  // q and out
    const double elements_k = used_rows_k * static_cast<double>(heads_k) * channels;  // k and v
    const double lse_bytes = lse ? 4.0 * used_rows_q * static_cast<double>(heads_q) : 0.0;
    const auto seen_elements = [&](const std::optional<ScoreMatrix>& matrix) {
        if (!matrix || batch == 0) return 0.0;
        return visible_pairs() / static_cast<double>(matrix->by_sequence ? 1 : batch) *
               static_cast<double>(matrix->by_head ? heads_q : 1);
    };
    return (elements_q + elements_k) * static_cast<double>(element_bytes()) + lse_bytes +
           seen_elements(bias) * (bias_dtype() == FOVEAL_F32 ? 4 : 2) + seen_elements(mask);
}

const char* dtype_name(foveal_dtype dtype) {
    switch (dtype) {
        case FOVEAL_F32:
            return "f32";
        case FOVEAL_BF16:
            return "bf16";
        case FOVEAL_F16:
            return "f16";
        case FOVEAL_I32:
            return "i32";
        case FOVEAL_BOOL:
            return "bool";
        default:
            return "?";
    }
}

}  // namespace foveal_testing
