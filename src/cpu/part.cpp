#include "cpu/part.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <utility>

#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/part.cpp"
#include <hwy/foreach_target.h>

#include "cpu/bias_row.hpp"
#include "cpu/convert.hpp"
#include "cpu/dequantise.hpp"
#include "cpu/dropout.hpp"
#include "cpu/queries.hpp"
#include "cpu/row_kernel.hpp"
#include "cpu/scaling.hpp"
#include "cpu/scores.hpp"
#include "cpu/softmax.hpp"
#include "cpu/subtile.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

// Where a block's rows lie. Its count is filled up to a whole number of the kernel's keys with its last row.
struct BlockRows {
    int32_t count = 0;  // without what it is filled up with
    const std::byte* k[kBlockKeys];
    const std::byte* v[kBlockKeys];

    void find(const HeadGroup& group, Range keys) {
        count = keys.size();
        group.k.find(keys, k);
        group.v.find(keys, v);
        for (int32_t j = count; j % kKeysATime != 0; ++j) k[j] = k[count - 1];
    }
};

// Rows in e4m3 that are dequantised at a time: few, so that the products of some run while the next ones are on their
// way, and the first-level cache has them.
constexpr int32_t kDequantisedRows = 16;

// Rows of K or V as the products read them: where they lie or, of e4m3, in `memory`.
class Rows {
   public:
    // from: those of keys first to first + count, filled up like BlockRows
    Rows(const std::byte* const* from, int32_t first, int32_t count, int64_t channels,
         const std::optional<Dequantiser>& dequantiser, float* memory)
        : rows_(from) {
        if (!dequantiser) return;
        for (int32_t j = 0; j < count; ++j) {
            auto* const to = reinterpret_cast<std::byte*>(memory + j * pitch_of(channels));
            dequantiser->row(from[j], first + j, channels, to);
            dequantised_[j] = to;
        }
        for (int32_t j = count; j % kKeysATime != 0; ++j) dequantised_[j] = dequantised_[count - 1];
        rows_ = dequantised_;
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;

    const std::byte* const* rows() const { return rows_; }

   private:
    const std::byte* const* rows_;
    const std::byte* dequantised_[kDequantisedRows];
};

template <class Format>
class FewQueries {
   public:
    FewQueries(const HeadGroup& group, const Part& part, float* memory)
        : group_(group),
          part_(part),
          scaling_(scaling_of(group)),
          load_query_(row_loader(group.q_dtype)),
          load_bias_(row_loader(group.bias_dtype)),
          queries_(static_cast<int>(group.queries())),
          q_pitch_(pitch_of(group.head_dim)) {
        Workspace workspace(memory);
        q_ = workspace.take(queries_ * q_pitch_);
        scores_ = workspace.take(queries_ * kScoresPitch);
        rescale_ = workspace.take(queries_);
        ones_ = workspace.take(queries_);
        std::fill_n(ones_, queries_, 1.0f);
        bias_ = workspace.take(kBlockKeys);
        if (!group.dequantises()) return;
        dequantise_k_.emplace(group.dtype, group.k_descale, group.k_descales);
        dequantise_v_.emplace(group.dtype, group.v_descale, group.v_descales);
        dequantised_ = workspace.take(kDequantisedRows * pitch_of(std::max(group.head_dim, group.head_dim_v)));
    }

    static int64_t workspace_floats(int64_t queries, int64_t head_dim, int64_t dequantised) {
        Workspace workspace(nullptr);
        workspace.take(queries * pitch_of(head_dim));
        workspace.take(queries * kScoresPitch);
        workspace.take(queries);
        workspace.take(queries);
        workspace.take(kBlockKeys);
        workspace.take(dequantised == 0 ? 0 : kDequantisedRows * pitch_of(dequantised));
        return workspace.used();
    }

    void attend(Range keys) {
        load_queries();
        std::fill_n(part_.max, queries_, kMinusInfinity);
        std::fill_n(part_.sum, queries_, 0.0f);
        std::fill_n(part_.out, queries_ * part_.pitch, 0.0f);
        BlockRows rows[2];
        BlockRows *now = &rows[0], *next = &rows[1];
        now->find(group_, block_at(keys, keys.begin));
        for (int32_t first = keys.begin; first < keys.end; std::swap(now, next)) {
            const int32_t end = first + now->count;
            next->find(group_, block_at(keys, end));
            attend_block(first, *now, *next);
            first = end;
        }
    }

   private:
    static constexpr int64_t kScoresPitch = kBlockKeys + kAlignment;

    // Keys of the part from `first` to the next multiple of kBlockKeys.
    static Range block_at(Range keys, int32_t first) {
        return {first, std::min(keys.end, (first / kBlockKeys + 1) * kBlockKeys)};
    }

    void load_queries() const {
        Query query(0, group_.heads);
        for (int i = 0; i < queries_; ++i, query.next()) {
            float* const row = q_ + i * q_pitch_;
            load_query(group_, load_query_, query, row);
            for (int64_t c = 0; c < group_.head_dim; ++c) row[c] *= scaling_.query_factor;
        }
    }

    void attend_block(int32_t first, const BlockRows& rows, const BlockRows& next) const {
        for_rows(rows.count, [&](Range some) { score(first, some, rows); });
        bool all_seen = true;
        Query query(0, group_.heads);
        for (int i = 0; i < queries_; ++i, query.next()) {
            const Range seen = seen_of_block(query, first, rows.count);
            all_seen &= seen.begin == 0 && seen.end == rows.count;
            weigh(query, i, first, rows.count, seen);
        }
        for_rows(rows.count, [&](Range some) { add_values(first, some, all_seen, rows, next); });
    }

    // Calls run(rows) for all of a block, or for some after the other where they are dequantised.
    template <class Run>
    HWY_INLINE void for_rows(int32_t count, Run&& run) const {
        const int32_t step = group_.dequantises() ? kDequantisedRows : kBlockKeys;
        for (int32_t begin = 0; begin < count; begin += step) run(Range{begin, std::min(begin + step, count)});
    }

    // Of these rows of K; V's are asked for meanwhile.
    void score(int32_t first, Range some, const BlockRows& rows) const {
        const Rows k(rows.k + some.begin, first + some.begin, some.size(), group_.head_dim, dequantise_k_,
                     dequantised_);
        const RowsAhead values_ahead{rows.v + some.begin, rows.count - some.begin, bytes(group_.head_dim_v)};
        const auto keys = static_cast<int32_t>(round_up(some.size(), kKeysATime));
        for_queries([&](auto count, int i, bool is_first) {
            score_rows<Format, count()>(q_ + i * q_pitch_, q_pitch_, k.rows(), group_.head_dim, keys,
                                        scores_ + i * kScoresPitch + some.begin, kScoresPitch,
                                        is_first ? values_ahead : RowsAhead{});
        });
    }

    // These rows of V; the next block's of K are asked for meanwhile.
    void add_values(int32_t first, Range some, bool all_seen, const BlockRows& rows, const BlockRows& next) const {
        const Rows v(rows.v + some.begin, first + some.begin, some.size(), group_.head_dim_v, dequantise_v_,
                     dequantised_);
        const RowsAhead keys_ahead{next.k + some.begin, next.count - some.begin, bytes(group_.head_dim)};
        if (all_seen) {
            for_queries([&](auto count, int i, bool is_first) {
                add_rows<count()>(i, some, some, v, is_first ? keys_ahead : RowsAhead{});
            });
            return;
        }
        // Where some queries do not see all: one at a time, each with its own keys, as 0 * NaN is NaN. The sums are the
        // same, to the bit.
        Query query(0, group_.heads);
        for (int i = 0; i < queries_; ++i, query.next()) {
            const Range seen = seen_of_block(query, first, rows.count);
            const int32_t begin = std::clamp(seen.begin, some.begin, some.end);
            add_rows<1>(i, {begin, std::clamp(seen.end, begin, some.end)}, some, v, i == 0 ? keys_ahead : RowsAhead{});
        }
    }

    // Rows `seen` of v, which holds those of `some`. The block's first ones scale what there is.
    template <int kQueries>
    void add_rows(int i, Range seen, Range some, const Rows& v, RowsAhead ahead) const {
        add_value_rows<Format, kQueries>(scores_ + i * kScoresPitch + seen.begin, kScoresPitch,
                                         v.rows() + (seen.begin - some.begin), group_.head_dim_v, seen.size(),
                                         some.begin == 0 ? rescale_ + i : ones_, part_.out + i * part_.pitch,
                                         part_.pitch, ahead);
    }

    int64_t bytes(int64_t channels) const { return channels * bytes_of(group_.keys_dtype); }

    // Calls run(count, first query, is it the first?) for four queries at a time, then two, then one.
    template <class Run>
    HWY_INLINE void for_queries(Run&& run) const {
        int i = 0;
        for (; i + 4 <= queries_; i += 4) run(std::integral_constant<int, 4>(), i, i == 0);
        for (; i + 2 <= queries_; i += 2) run(std::integral_constant<int, 2>(), i, i == 0);
        for (; i < queries_; ++i) run(std::integral_constant<int, 1>(), i, i == 0);
    }

    // Of the block's keys.
    Range seen_of_block(const Query& query, int32_t first, int32_t count) const {
        const Range seen = visible_keys(group_.band, query.row);
        const int32_t begin = std::clamp(seen.begin - first, 0, count);
        return {begin, std::clamp(seen.end - first, begin, count)};
    }

    // From q.k of one query to its probabilities, and what the block means for its maximum, sum and output.
    void weigh(const Query& query, int i, int32_t first, int32_t count, Range seen) const {
        float* const s = scores_ + i * kScoresPitch;
        const auto padded = static_cast<int32_t>(round_up(count, lanes()));
        if (scaling_.scales_scores) {
            if (group_.softcap > 0)
                cap_scores(s, padded, group_.scale, group_.softcap);
            else
                scale_scores(s, padded, group_.scale);
            if (group_.alibi_slopes != nullptr)
                add_alibi_to_row(s, first, count, query.row + group_.band.off, slope_of(query));
        }
        if (group_.has_bias_row(first, count)) {
            load_bias_row(group_, load_bias_, query, first, count, bias_);
            add_bias_to_row(s, count, bias_);
        }
        std::fill(s, s + seen.begin, kMinusInfinity);
        std::fill(s + seen.end, s + padded, kMinusInfinity);
        rescale_[i] = with_rounding(group_.dtype, [&](auto round) {
            return softmax_row(s, padded, scaling_.positive_scale, scaling_.bias_log2, round, part_.max + i,
                               part_.sum + i);
        });
        if (!group_.drops_weights()) return;
        drop_row(s, first, seen, group_.dropout_key, group_.dropout_threshold,
                 group_.dropout_head + static_cast<uint32_t>(query.head), static_cast<uint32_t>(query.row));
    }

    float slope_of(const Query& query) const {
        return finite_slope(group_.alibi_slopes[query.head * group_.alibi_stride], group_.most_distance());
    }

    const HeadGroup& group_;
    const Part& part_;
    const Scaling scaling_;
    const LoadRow load_query_, load_bias_;
    const int queries_;
    const int64_t q_pitch_;
    float* q_;                                                // [queries, d], times the scaling's query_factor
    float* scores_;                                           // [queries, kBlockKeys]
    float* rescale_;                                          // [queries]
    float* ones_;                                             // [queries]
    float* bias_;                                             // [kBlockKeys]
    std::optional<Dequantiser> dequantise_k_, dequantise_v_;  // if they are in e4m3
    float* dequantised_ = nullptr;                            // then: some rows of K or V
};

// A tile's vectors of queries are full with more.
int64_t CountFewQueries() { return lanes(); }

int64_t CountFewQueriesWorkspace(int64_t queries, int64_t head_dim, int64_t dequantised) {
    return FewQueries<F32Format>::workspace_floats(queries, head_dim, dequantised);
}

void AttendFewQueries(const HeadGroup& group, Range keys, const Part& part, float* workspace) {
    switch (group.dtype) {
        case DType::f32:
            return FewQueries<F32Format>(group, part, workspace).attend(keys);
        case DType::bf16:
            return FewQueries<BF16Format>(group, part, workspace).attend(keys);
        case DType::f16:
            return FewQueries<F16Format>(group, part, workspace).attend(keys);
        default:  // validate() lets no other through
            break;
    }
}

// to = to * a + from * b, up to a whole vector.
void add_scaled(float* to, float a, const float* from, float b, int64_t size) {
    const F32 d;
    for (int64_t i = 0; i < size; i += lanes()) {
        const VecF32 scaled = hn::Mul(hn::Load(d, to + i), hn::Set(d, a));
        hn::Store(hn::MulAdd(hn::Load(d, from + i), hn::Set(d, b), scaled), d, to + i);
    }
}

// Of one query: the first part becomes the sum of all, one after the other. What is empty counts for nothing.
void merge_query(const Part& first, float* memory, int64_t count, int64_t floats, int64_t i, const HeadGroup& group,
                 float positive_scale) {
    const int64_t queries = group.queries();
    float max = kMinusInfinity;
    for (int64_t n = 0; n < count; ++n)
        max = std::max(max, part_at(memory + n * floats, queries, group.head_dim_v).max[i]);
    const float anchor = max == kMinusInfinity ? 0 : max;
    const auto weight_of = [&](const Part& part) {
        return static_cast<float>(std::exp(double{positive_scale} * (double{part.max[i]} - double{anchor})));
    };
    float* const out = first.out + i * first.pitch;
    if (first.sum[i] == 0) std::fill_n(out, first.pitch, 0.0f);
    float weight = weight_of(first);
    first.sum[i] *= weight;
    for (int64_t n = 1; n < count; ++n) {
        const Part part = part_at(memory + n * floats, queries, group.head_dim_v);
        if (part.sum[i] == 0) continue;
        const float added = weight_of(part);
        add_scaled(out, weight, part.out + i * part.pitch, added, group.head_dim_v);
        first.sum[i] += part.sum[i] * added;
        weight = 1;
    }
    if (weight != 1) add_scaled(out, weight, out, 0, group.head_dim_v);
    first.max[i] = max;
}

// out = out / sum, times the share that the sink leaves and dropout's scale; a query without a key has the sum 0.
void divide(float* out, float sum, float weight, int64_t size) {
    const F32 d;
    for (int64_t i = 0; i < size; i += lanes()) {
        const VecF32 average = hn::Mul(hn::Div(hn::Load(d, out + i), hn::Set(d, sum)), hn::Set(d, weight));
        hn::Store(sum == 0 ? hn::Zero(d) : average, d, out + i);
    }
}

void MergeParts(const HeadGroup& group, float* memory, int64_t count) {
    const Scaling scaling = scaling_of(group);
    const StoreRow store = row_storer(group.out_dtype);
    const int64_t queries = group.queries();
    const int64_t floats = part_floats(queries, group.head_dim_v);
    const Part first = part_at(memory, queries, group.head_dim_v);
    Query query(0, group.heads);
    for (int64_t i = 0; i < queries; ++i, query.next()) {
        if (count > 1) merge_query(first, memory, count, floats, i, group, scaling.positive_scale);
        const KeySum keys = scaling.sum_of_keys(first.max[i], first.sum[i]);
        float weight = group.dropout_scale;
        if (group.sinks != nullptr) weight *= weight_against_sink(keys, group.sink_of(query.head));
        float* const out = first.out + i * first.pitch;
        divide(out, first.sum[i], weight, group.head_dim_v);
        store(out, group.head_dim_v, advance(group.out, group.out_dtype, query.offset(group.out_stride)));
        if (group.lse == nullptr) continue;
        double lse = keys.log_sum_exp();
        if (group.sinks != nullptr) lse = log_add_exp(lse, group.sink_of(query.head));
        group.lse[query.offset(group.lse_stride)] = static_cast<float>(lse);
    }
}

}  // namespace
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foveal::cpu {
namespace {

HWY_EXPORT(CountFewQueries);
HWY_EXPORT(CountFewQueriesWorkspace);
HWY_EXPORT(AttendFewQueries);
HWY_EXPORT(MergeParts);

constexpr int64_t kLineFloats = 16;
int64_t whole_lines(int64_t floats) { return (floats + kLineFloats - 1) / kLineFloats * kLineFloats; }

}  // namespace

int64_t part_floats(int64_t queries, int64_t head_dim_v) {
    return 2 * whole_lines(queries) + queries * whole_lines(head_dim_v);
}

Part part_at(float* memory, int64_t queries, int64_t head_dim_v) {
    return {memory, memory + whole_lines(queries), memory + 2 * whole_lines(queries), whole_lines(head_dim_v)};
}

int64_t most_few_queries() { return HWY_DYNAMIC_DISPATCH(CountFewQueries)(); }

int64_t few_queries_workspace_floats(int64_t queries, int64_t head_dim, int64_t dequantised) {
    return HWY_DYNAMIC_DISPATCH(CountFewQueriesWorkspace)(queries, head_dim, dequantised);
}

void attend_few_queries(const HeadGroup& group, Range keys, const Part& part, float* workspace) {
    HWY_DYNAMIC_DISPATCH(AttendFewQueries)(group, keys, part, workspace);
}

void merge_parts(const HeadGroup& group, float* parts, int64_t count) {
    HWY_DYNAMIC_DISPATCH(MergeParts)(group, parts, count);
}

}  // namespace foveal::cpu
#endif
