#include "tests/support/merge_data.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace foveal_testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// So many values are drawn for a part at most; a larger one repeats them.
constexpr int64_t kMaxDrawn = int64_t{1} << 20;

Shape strides_of(const Shape& shape, MergeCase::Layout layout) {
    if (layout == MergeCase::Layout::kPacked) return packed_strides(shape);
    if (layout == MergeCase::Layout::kOddStrides) return packed_strides(shape, 1);
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::swap(order[shape.size() - 3], order[shape.size() - 2]);
    return strides_in_order(shape, order, 8);
}

StridedTensor out_tensor(foveal_backend backend, const MergeCase& c, foveal_dtype dtype) {
    // An odd offset in 2-byte elements: no 16-byte load fits.
    return {backend, dtype, c.out_shape(), strides_of(c.out_shape(), c.layout),
            c.layout == MergeCase::Layout::kOddStrides ? 17 : 16};
}

StridedTensor lse_tensor(foveal_backend backend, const MergeCase& c) {
    return {backend, FOVEAL_F32, c.lse_shape(),
            packed_strides(c.lse_shape(), c.layout == MergeCase::Layout::kPacked ? 0 : 3)};
}

struct MergedRow {
    std::vector<double> out;
    std::vector<float> reference;  // the textbook's formula in fp32, rounded to the type of out
    double lse;
};

MergedRow merged_row(const MergeCase& c, const PartialValues& values, int64_t i) {
    MergedRow row{std::vector<double>(static_cast<size_t>(c.channels)), {}, -HUGE_VAL};
    double largest = -HUGE_VAL, sum = 0;
    for (const auto& lse : values.lses) largest = std::max(largest, double{lse[c.lse_index(i)]});
    std::vector<float> reference(static_cast<size_t>(c.channels));
    if (largest > -HUGE_VAL) {
        for (const auto& lse : values.lses) sum += std::exp(lse[c.lse_index(i)] - largest);
        row.lse = largest + std::log(sum);
    }
    for (size_t n = 0; n < values.lses.size(); ++n) {
        const float lse = values.lses[n][c.lse_index(i)];
        if (lse == -kInf) continue;
        const float* out = values.outs[n].data() + i * c.channels;
        for (size_t j = 0; j < row.out.size(); ++j) {
            row.out[j] += std::exp(lse - row.lse) * out[j];
            reference[j] += std::exp(lse - static_cast<float>(row.lse)) * out[j];
        }
    }
    for (const float x : reference) row.reference.push_back(round_to(c.out_dtype, x));
    return row;
}

}  // namespace

PartialValues draw_parts(const MergeCase& c, uint64_t seed) {
    std::mt19937 random(static_cast<std::mt19937::result_type>(seed));
    std::normal_distribution<float> normal;
    PartialValues values;
    for (int32_t n = 0; n < c.parts; ++n) {
        std::vector<float> out(static_cast<size_t>(elements_of(c.out_shape())));
        std::vector<float> lse(static_cast<size_t>(elements_of(c.lse_shape())));
        const size_t drawn = std::min(out.size(), static_cast<size_t>(kMaxDrawn));
        for (size_t i = 0; i < drawn; ++i) out[i] = round_to(c.dtype, normal(random));
        for (size_t i = drawn; i < out.size(); ++i) out[i] = out[i - drawn];
        for (int64_t i = 0; i < c.all_rows(); ++i) {
            const bool empty = i == 0 || random() % 6 == 0;
            lse[c.lse_index(i)] = empty ? -kInf : 20 + 3 * normal(random);
            if (!empty) continue;
            std::fill_n(out.begin() + i * c.channels, c.channels, std::numeric_limits<float>::quiet_NaN());
        }
        values.outs.push_back(std::move(out));
        values.lses.push_back(std::move(lse));
    }
    return values;
}

MergeData::MergeData(foveal_backend backend, const MergeCase& c, const PartialValues& values)
    : out(out_tensor(backend, c, c.out_dtype)), lse(lse_tensor(backend, c)) {
    for (size_t n = 0; n < values.outs.size(); ++n) {
        outs.push_back(out_tensor(backend, c, c.dtype));
        outs.back().set(values.outs[n]);
        lses.push_back(lse_tensor(backend, c));
        lses.back().set(values.lses[n]);
    }
}

std::vector<foveal::Part> MergeData::parts() {
    std::vector<foveal::Part> all;
    for (size_t n = 0; n < outs.size(); ++n) all.push_back({outs[n].view(), lses[n].view()});
    return all;
}

Verdict judge_merged(const MergeCase& c, const PartialValues& values, const std::vector<float>& out,
                     const std::vector<float>& lse, int64_t every) {
    ErrorStatistics statistics(c.out_dtype);
    for (int64_t i = 0; i < c.all_rows(); i += every) {
        const MergedRow row = merged_row(c, values, i);
        const int64_t head = i % c.heads, r = i / c.heads % c.rows, sequence = i / c.heads / c.rows;
        statistics.add_row(sequence, head, r, c.channels, out.data() + i * c.channels, row.out.data(),
                           row.reference.data());
        if (!lse.empty()) statistics.add_lse(sequence, head, r, lse[c.lse_index(i)], row.lse);
    }
    return judge(statistics);
}

}  // namespace foveal_testing
