#include "cpu/merge.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge.cpp"
#include <hwy/foreach_target.h>

#include "cpu/convert.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

// The parts that count in one row: where its values lie, and what they are multiplied with.
template <class In>
struct WeightedRows {
    int count = 0;
    const typename In::Storage* row[FOVEAL_MAX_MERGE_PARTS];  // [d_v]
    float weight[FOVEAL_MAX_MERGE_PARTS];

    void add(const void* out, int64_t offset, float w) {
        row[count] = static_cast<const typename In::Storage*>(out) + offset;
        weight[count++] = w;
    }
};

int64_t offset_of(const Strides& stride, int64_t batch, int64_t row, int64_t head) {
    return batch * stride.batch + row * stride.row + head * stride.head;
}

// Finds the row's parts and weights; returns its log-sum-exp.
template <class In>
float weigh(const Merge& merge, int64_t batch, int64_t row, int64_t head, WeightedRows<In>& rows) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    float lse[FOVEAL_MAX_MERGE_PARTS];
    float max = -kInfinity;  // of those that are numbers
    for (int32_t n = 0; n < merge.parts; ++n) {
        const MergePart& part = merge.part[static_cast<size_t>(n)];
        lse[n] = part.lse[offset_of(part.lse_stride, batch, row, head)];
        max = std::max(max, lse[n]);
    }
    const float anchor = std::isinf(max) ? 0 : max;  // exp(inf - inf) would make NaN of a sum that is inf
    float sum = 0;
    for (int32_t n = 0; n < merge.parts; ++n) {
        if (lse[n] == -kInfinity) continue;  // its values may be NaN
        const MergePart& part = merge.part[static_cast<size_t>(n)];
        const float weight = std::exp(lse[n] - anchor);
        sum += weight;
        rows.add(part.out, offset_of(part.out_stride, batch, row, head), weight);
    }
    for (int n = 0; n < rows.count; ++n) rows.weight[n] /= sum;
    return anchor + std::log(sum);
}

// One vector of the weighted sum, from element i on; zeros without a row.
template <class In>
HWY_INLINE VecF32 weighted_sum(const WeightedRows<In>& rows, int64_t i) {
    const F32 d;
    if (rows.count == 0) return hn::Zero(d);
    VecF32 sum = hn::Mul(hn::Set(d, rows.weight[0]), In::load(rows.row[0] + i));
    for (int n = 1; n < rows.count; ++n) sum = hn::MulAdd(hn::Set(d, rows.weight[n]), In::load(rows.row[n] + i), sum);
    return sum;
}

// The last `size` elements, fewer than a vector: through copies, as nothing behind them may be touched.
template <class In, class Out>
HWY_NOINLINE void merge_tail(WeightedRows<In> rows, int64_t size, typename Out::Storage* to) {
    typename In::Storage values[FOVEAL_MAX_MERGE_PARTS][hn::MaxLanes(F32())];
    for (int n = 0; n < rows.count; ++n) {
        std::fill(std::copy(rows.row[n], rows.row[n] + size, values[n]), values[n] + hn::MaxLanes(F32()), 0);
        rows.row[n] = values[n];
    }
    typename Out::Storage merged[hn::MaxLanes(F32())];
    Out::store(weighted_sum(rows, 0), merged);
    std::copy(merged, merged + size, to);
}

// to: [d_v]; may be one of the rows.
template <class In, class Out>
void merge_row(WeightedRows<In>& rows, int64_t head_dim, typename Out::Storage* to) {
    const int64_t in_vectors = head_dim - head_dim % lanes();
    for (int64_t i = 0; i < in_vectors; i += lanes()) Out::store(weighted_sum(rows, i), to + i);
    if (in_vectors == head_dim) return;
    for (int n = 0; n < rows.count; ++n) rows.row[n] += in_vectors;
    merge_tail<In, Out>(rows, head_dim - in_vectors, to + in_vectors);
}

template <class In, class Out>
void merge_rows(const Merge& merge, int64_t begin, int64_t end) {
    const MergePart& merged = merge.merged;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t head = i % merge.heads;
        const int64_t row = i / merge.heads % merge.rows;
        const int64_t batch = i / merge.heads / merge.rows;
        WeightedRows<In> rows;
        const float lse = weigh(merge, batch, row, head, rows);
        auto* to = static_cast<typename Out::Storage*>(merged.out);
        merge_row<In, Out>(rows, merge.head_dim, to + offset_of(merged.out_stride, batch, row, head));
        if (merged.lse != nullptr) merged.lse[offset_of(merged.lse_stride, batch, row, head)] = lse;
    }
}

void MergeRows(const Merge& merge, int64_t begin, int64_t end) {
    const bool widens = merge.out_dtype != merge.dtype;  // to f32
    switch (merge.dtype) {
        case DType::f32:
            return merge.out_dtype == DType::bf16  ? merge_rows<F32Format, BF16Format>(merge, begin, end)
                   : merge.out_dtype == DType::f16 ? merge_rows<F32Format, F16Format>(merge, begin, end)
                                                   : merge_rows<F32Format, F32Format>(merge, begin, end);
        case DType::bf16:
            return widens ? merge_rows<BF16Format, F32Format>(merge, begin, end)
                          : merge_rows<BF16Format, BF16Format>(merge, begin, end);
        case DType::f16:
            return widens ? merge_rows<F16Format, F32Format>(merge, begin, end)
                          : merge_rows<F16Format, F16Format>(merge, begin, end);
        default:  // validate() lets no other through
            break;
    }
}

}  // namespace
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foveal::cpu {
namespace {

HWY_EXPORT(MergeRows);

// Elements read below which waking another thread costs more than it helps: about 20 us of one core ...
constexpr int64_t kSerialElements = 1 << 17;
// ... and how many a thread takes at once.
constexpr int64_t kElementsATime = 1 << 16;

}  // namespace

void merge(const Merge& merge) {
    const int64_t all_rows = merge.all_rows();
    if (all_rows == 0) return;
    const int64_t row_elements = (merge.head_dim + 1) * merge.parts;
    const int64_t rows_a_time = std::max<int64_t>(kElementsATime / row_elements, 1);
    const bool serial = static_cast<double>(all_rows) * static_cast<double>(row_elements) < kSerialElements;
    const int threads = thread_count_for(serial);
    parallel_for((all_rows + rows_a_time - 1) / rows_a_time, serial ? 1 : threads, [&](int64_t i) {
        HWY_DYNAMIC_DISPATCH(MergeRows)(merge, i * rows_a_time, std::min((i + 1) * rows_a_time, all_rows));
    });
}

}  // namespace foveal::cpu
#endif
