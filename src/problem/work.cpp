#include "problem/work.hpp"

#include "problem/mask.hpp"

namespace foveal {
namespace {

double visible_pairs(Window window, const SequenceLengths& lengths) {
    const auto rows = static_cast<int32_t>(lengths.q);
    const auto keys = static_cast<int32_t>(lengths.k);
    const Band band = lengths.query_offset ? band_at(window, static_cast<int32_t>(*lengths.query_offset), keys)
                                           : band_of(window, rows, keys);
    double pairs = 0;
    for (int32_t i = 0; i < rows; ++i) pairs += visible_keys(band, i).size();
    return pairs;
}

// Of a bias or a mask, each visible element is read once, also where several scores share it.
double matrix_bytes(const ForwardProblem& p, const ScoreStrides& strides, DType dtype, double pairs, double rows_q,
                    double rows_k) {
    const bool by_sequence = strides.batch != 0 || p.batch <= 1, by_head = strides.head != 0,
               by_query = strides.row != 0 || p.rows_q <= 1, by_key = strides.key != 0 || p.rows_k <= 1;
    const double of_all_sequences = by_query && by_key ? pairs
                                    : by_key           ? rows_k
                                    : by_query         ? rows_q
                                                       : static_cast<double>(p.batch);
    return of_all_sequences / static_cast<double>(by_sequence ? 1 : p.batch) *
           static_cast<double>(by_head ? p.heads_q : 1) * static_cast<double>(bytes_of(dtype));
}

UsefulWork work_of(const ForwardProblem& p, double pairs, double rows_q, double rows_k) {
    const double heads_q = static_cast<double>(p.heads_q), heads_k = static_cast<double>(p.heads_k);
    const auto dim = static_cast<double>(p.head_dim), dim_v = static_cast<double>(p.head_dim_v);
    const double channels = dim + dim_v;
    const auto bytes = [](DType dtype) { return static_cast<double>(bytes_of(dtype)); };
    UsefulWork work{pairs, 2 * channels * pairs * heads_q, 0};
    work.bytes = rows_q * heads_q * (dim * bytes(p.dtype) + dim_v * bytes(p.out_dtype)) +
                 rows_k * heads_k * channels * bytes(p.keys_dtype);
    if (p.wants_lse) work.bytes += rows_q * heads_q * static_cast<double>(sizeof(float));
    if (p.has_bias) work.bytes += matrix_bytes(p, p.bias, p.bias_dtype, pairs, rows_q, rows_k);
    if (p.has_mask) work.bytes += matrix_bytes(p, p.mask, DType::boolean, pairs, rows_q, rows_k);
    return work;
}

}  // namespace

UsefulWork useful_work(const ForwardProblem& p, std::span<const SequenceLengths> lengths) {
    double pairs = 0, rows_q = 0, rows_k = 0;
    for (const SequenceLengths& sequence : lengths) {
        pairs += visible_pairs(p.window(), sequence);
        rows_q += static_cast<double>(sequence.q);
        rows_k += static_cast<double>(sequence.k);
    }
    return work_of(p, pairs, rows_q, rows_k);
}

UsefulWork useful_work_of_dense(const ForwardProblem& p) {
    const auto batch = static_cast<double>(p.batch);
    return work_of(p, batch * visible_pairs(p.window(), {p.rows_q, p.rows_k}), batch * static_cast<double>(p.rows_q),
                   batch * static_cast<double>(p.rows_k));
}

}  // namespace foveal
