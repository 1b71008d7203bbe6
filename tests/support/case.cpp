#include "tests/support/case.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "problem/work.hpp"
#include "tests/support/input_values.hpp"

namespace foveal_testing {
namespace {

// What the library counts as useful work depends on these alone. Strides say which matrices are shared.
foveal::ForwardProblem problem_of(const Case& c) {
    foveal::ForwardProblem p;
    p.dtype = static_cast<foveal::DType>(c.dtype);
    p.keys_dtype = static_cast<foveal::DType>(c.keys_dtype());
    p.out_dtype = static_cast<foveal::DType>(c.out_dtype());
    p.varlen = c.varlen;
    p.keys = c.page_size > 0 ? foveal::KeyForm::paged : c.varlen_k ? foveal::KeyForm::varlen : foveal::KeyForm::dense;
    p.wants_lse = c.lse;
    p.batch = c.batch;
    p.rows_q = c.rows_q;
    p.rows_k = c.rows_k;
    p.heads_q = c.heads_q;
    p.heads_k = c.heads_k;
    p.head_dim = c.head_dim;
    p.head_dim_v = c.head_dim_v;
    p.window_left = c.window_left;
    p.window_right = c.window_right;
    p.alignment = c.top_left ? FOVEAL_TOP_LEFT : FOVEAL_BOTTOM_RIGHT;
    p.chunk = c.chunk;
    const auto strides = [](const ScoreMatrix& matrix) {
        return foveal::ScoreStrides{{matrix.by_sequence ? 1 : 0, matrix.by_query ? 1 : 0, matrix.by_head ? 1 : 0},
                                    matrix.by_key ? 1 : 0};
    };
    p.has_bias = c.bias.has_value();
    if (c.bias) p.bias_dtype = static_cast<foveal::DType>(c.bias_dtype()), p.bias = strides(*c.bias);
    p.has_mask = c.mask.has_value();
    if (c.mask) p.mask = strides(*c.mask);
    return p;
}

foveal::UsefulWork work_of(const Case& c) {
    if (!c.varlen && !c.varlen_k && !c.seqused_q && !c.seqused_k && !c.query_offset)
        return foveal::useful_work_of_dense(problem_of(c));
    std::vector<foveal::SequenceLengths> lengths;
    for (int64_t i = 0; i < c.batch; ++i) lengths.push_back({c.used_q(i), c.used_k(i), c.offset_of(i)});
    return foveal::useful_work(problem_of(c), lengths);
}

}  // namespace

int64_t Case::length_q(int64_t sequence) const { return varlen ? lengths_q[static_cast<size_t>(sequence)] : rows_q; }

int64_t Case::length_k(int64_t sequence) const { return varlen_k ? lengths_k[static_cast<size_t>(sequence)] : rows_k; }

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
    return std::accumulate(lengths_k.begin(), lengths_k.begin() + (varlen_k ? sequence : 0), int64_t{0});
}

std::optional<int64_t> Case::offset_of(int64_t sequence) const {
    return query_offset ? std::optional((*query_offset)[static_cast<size_t>(sequence)]) : std::nullopt;
}

double Case::effective_scale() const {
    return scale ? static_cast<double>(*scale) : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

std::array<uint64_t, 2> Case::dropout_state() const {
    constexpr uint64_t kOffset = 0xFEDCBA9876543210u;  // no half of either number is 0
    return dropout_seed_and_offset.value_or(std::array{mix64(seed), kOffset});
}

double Case::visible_pairs() const { return work_of(*this).visible_pairs; }

double Case::flops() const { return work_of(*this).flops; }

// Common keys cross the bus once.
double Case::min_bytes() const {
    int64_t sequences = 0;
    for (int64_t i = 0; i < batch; ++i) sequences += used_q(i) > 0 ? 1 : 0;
    const int64_t row_bytes =
        heads_k * (head_dim + head_dim_v) * foveal::bytes_of(static_cast<foveal::DType>(keys_dtype()));
    return work_of(*this).bytes -
           static_cast<double>(std::max<int64_t>(sequences - 1, 0)) * static_cast<double>(common * row_bytes);
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
        case FOVEAL_E4M3:
            return "e4m3";
        default:
            return "?";
    }
}

}  // namespace foveal_testing
