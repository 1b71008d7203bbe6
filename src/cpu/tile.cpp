#include "cpu/tile.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <optional>
#include <vector>

// No CPU with SSSE3 but without SSE4 is worth its compile time.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile.cpp"
#include <hwy/foreach_target.h>

#include "cpu/convert.hpp"
#include "cpu/microkernel.hpp"
#include "cpu/pack.hpp"
#include "cpu/scores.hpp"
#include "cpu/softmax.hpp"
#include "cpu/subtile.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

class Tile {
   public:
    Tile(const HeadGroup& group, float* memory)
        : group_(group),
          seen_(seen_keys(group.band, group.len_q)),
          workspace_(memory),
          shared_(take_shared(workspace_, group.head_dim, group.head_dim_v)),
          load_row_(row_loader(group.dtype)),
          store_row_(row_storer(group.dtype)),
          load_bias_row_(row_loader(group.bias_dtype)),
          scales_scores_(group.softcap > 0 || group.alibi_slopes != nullptr || group.bias != nullptr),
          // The softmax scales by a positive number. A negative scale's sign, or zero (a mask's -inf times zero would
          // be NaN), goes to the queries instead, where it is exact.
          query_factor_(scales_scores_    ? 1.0f
                        : group.scale > 0 ? 1.0f
                        : group.scale < 0 ? -1.0f
                                          : 0.0f),
          positive_scale_(scales_scores_ || group.scale == 0 ? 1.0f : std::abs(group.scale)) {}

    void compute(int64_t begin, int64_t end) {
        std::vector<Subtile> subtiles;
        for (int64_t first = begin; first < end; first += queries_per_subtile()) {
            subtiles.push_back(start(first, std::min(first + queries_per_subtile(), end)));
        }
        const Range blocks = blocks_of(subtiles);
        for (int32_t block = blocks.begin; block < blocks.end; ++block) {
            pack(block);
            for (Subtile& subtile : subtiles) {
                if (subtile.blocks.visit.contains(block)) attend(subtile, block);
            }
        }
        for (const Subtile& subtile : subtiles) finish(subtile);
    }

   private:
    // Probabilities are kept as p * 2^-bias, so that they sum to at most 1 and no partial sum of p * v overflows where
    // the result does not. In f16 p is rounded to a format of which the range is small, and v * 2^29 cannot overflow.
    int bias_log2() const {
        return group_.dtype == DType::f16 ? 0 : std::bit_width(static_cast<uint32_t>(group_.len_k));
    }

    // From the first to the last block of keys that any query sees.
    static Range blocks_of(const std::vector<Subtile>& subtiles) {
        Range blocks{std::numeric_limits<int32_t>::max(), 0};
        for (const Subtile& subtile : subtiles) {
            const Range visit = subtile.blocks.visit;
            if (visit.size() == 0) continue;
            blocks = {std::min(blocks.begin, visit.begin), std::max(blocks.end, visit.end)};
        }
        return blocks;
    }

    Subtile start(int64_t first, int64_t end) {
        Subtile subtile = take_subtile(workspace_, group_.head_dim, group_.head_dim_v);
        subtile.first_query = first;
        subtile.queries = end - first;
        subtile.vectors = static_cast<int>((subtile.queries + lanes() - 1) / lanes());
        const int64_t width = subtile.vectors * lanes();
        std::fill_n(subtile.o, round_up(group_.head_dim_v, kRows) * width, 0.0f);
        std::fill_n(subtile.softmax.max, width, kMinusInfinity);
        std::fill_n(subtile.softmax.sum, width, 0.0f);
        subtile.softmax.rescale = shared_.rescale;
        find_keys(subtile);
        if (group_.alibi_slopes != nullptr) find_slopes(subtile);
        load_queries(subtile);
        return subtile;
    }

    void find_keys(Subtile& subtile) const {
        Query query(subtile.first_query, group_.heads);
        const int32_t first_row = query.row;
        Range seen{0, 0};
        for (int64_t i = 0; i < subtile.vectors * lanes(); ++i) {
            if (i < subtile.queries) {
                seen = visible_keys(group_.band, query.row);
                if (i + 1 < subtile.queries) query.next();
            }
            subtile.key_begin[i] = seen.begin;
            subtile.key_end[i] = seen.end;
        }
        subtile.keys = {visible_keys(group_.band, first_row).begin, seen.end};
        subtile.blocks = kv_range(group_.band, {first_row, query.row + 1}, kBlockKeys);
    }

    void find_slopes(const Subtile& subtile) const {
        Query query(subtile.first_query, group_.heads);
        for (int64_t i = 0; i < subtile.vectors * lanes(); ++i) {
            subtile.position[i] = query.row + group_.band.off;
            subtile.slope[i] = finite_slope(group_.alibi_slopes[query.head * group_.alibi_stride],
                                            int64_t{group_.len_q} + group_.len_k);
            if (i + 1 < subtile.queries) query.next();
        }
    }

    void load_queries(const Subtile& subtile) const {
        const int64_t pitch = pitch_of(group_.head_dim);
        const VecF32 factor = hn::Set(F32(), query_factor_);
        Query query(subtile.first_query, group_.heads);
        for (int v = 0; v < subtile.vectors; ++v) {
            for (int64_t lane = 0; lane < lanes(); ++lane) {
                float* const row = shared_.rows + lane * pitch;
                if (v * lanes() + lane < subtile.queries) {
                    load_row_(advance(group_.q, group_.dtype, query.offset(group_.q_stride)), group_.head_dim, row);
                    query.next();
                } else {
                    std::fill_n(row, pitch, 0.0f);
                }
            }
            for (int64_t i = 0; i < group_.head_dim; i += kTransposeColumns) {
                const FourColumns columns = load_columns(shared_.rows + i, pitch);
                for (int64_t c = 0; c < kTransposeColumns; ++c) {
                    float* const to = subtile.q + ((i + c) * subtile.vectors + v) * lanes();
                    hn::Store(hn::Mul(columns.column[c], factor), F32(), to);
                }
            }
        }
    }

    // Keys and values of a block, as floats.
    void pack(int32_t block) {
        const BlockOfRows rows{block * kBlockKeys, group_.len_k, seen_};
        pack_rows(load_row_, group_.k, group_.dtype, group_.k_row_stride, group_.head_dim, rows, shared_.k);
        pack_rows(load_row_, group_.v, group_.dtype, group_.v_row_stride, group_.head_dim_v, rows, shared_.v);
        values_are_finite_.reset();
    }

    // Of that block, asked for where some queries do not see all of it.
    bool values_are_finite(int32_t block) {
        if (!values_are_finite_)
            values_are_finite_ =
                all_finite(shared_.v, BlockOfRows{block * kBlockKeys, group_.len_k, seen_}.count(), group_.head_dim_v);
        return *values_are_finite_;
    }

    void attend(Subtile& subtile, int32_t block) {
        switch (subtile.vectors) {
            case 1:
                return attend_vectors<1>(subtile, block);
            case 2:
                return attend_vectors<2>(subtile, block);
            default:
                return attend_vectors<kMaxVectors>(subtile, block);
        }
    }

    template <int kVectors>
    void attend_vectors(Subtile& subtile, int32_t block) {
        // Of the block, the register blocks of keys between the first and the last that any query sees.
        const int32_t first = block * kBlockKeys;
        const int32_t begin = std::max(subtile.keys.begin - first, 0) / kRows * kRows;
        const int32_t end = std::min(subtile.keys.end - first, kBlockKeys);
        const int32_t keys = (end - begin + kRows - 1) / kRows * kRows;
        const int64_t width = kVectors * lanes();

        const int64_t k_pitch = pitch_of(group_.head_dim);
        score_keys<kVectors>(subtile.q, shared_.k + begin * k_pitch, k_pitch, group_.head_dim, keys, shared_.scores);
        if (scales_scores_) modify_scores<kVectors>(subtile, first + begin, keys);
        if (group_.bias != nullptr || group_.mask != nullptr) add_bias_rows<kVectors>(subtile, first + begin, keys);
        const bool masked = !subtile.blocks.unmasked.contains(block);
        if (masked) mask_scores<kVectors>(shared_.scores, first + begin, keys, subtile.key_begin, subtile.key_end);
        normalise<kVectors>(subtile, keys);
        const SeenKeys seen{first + begin, subtile.key_begin, subtile.key_end};
        const bool all_count = !masked || values_are_finite(block);
        const int64_t v_pitch = pitch_of(group_.head_dim_v);
        for (int64_t c = 0; c < group_.head_dim_v; c += kRows) {
            const float* values = shared_.v + begin * v_pitch + c;
            float* const o = subtile.o + c * width;
            if (all_count)
                accumulate_values<kVectors>(shared_.scores, values, v_pitch, keys, shared_.rescale, o);
            else
                accumulate_seen_values<kVectors>(shared_.scores, values, v_pitch, keys, seen, shared_.rescale, o);
        }
    }

    template <int kVectors>
    void modify_scores(const Subtile& subtile, int32_t first_key, int32_t keys) const {
        const int64_t count = keys * kVectors * lanes();
        if (group_.softcap > 0) {
            cap_scores(shared_.scores, count, group_.scale, group_.softcap);
        } else {
            scale_scores(shared_.scores, count, group_.scale);
        }
        if (group_.alibi_slopes != nullptr)
            add_alibi<kVectors>(shared_.scores, first_key, keys, subtile.position, subtile.slope);
    }

    // What the rows hold beyond the sequence's keys is hidden afterwards, as are those keys' scores.
    template <int kVectors>
    void add_bias_rows(const Subtile& subtile, int32_t first_key, int32_t keys) const {
        const int64_t pitch = pitch_of(kBlockKeys);
        const int64_t count = std::min(keys, group_.len_k - first_key);
        Query query(subtile.first_query, group_.heads);
        if (group_.shares_bias_row()) {
            load_bias_row(query, first_key, count, shared_.rows);
            return add_shared_bias(shared_.scores, kVectors * lanes(), keys, shared_.rows);
        }
        for (int v = 0; v < kVectors; ++v) {
            for (int64_t lane = 0; lane < lanes(); ++lane) {
                float* const row = shared_.rows + lane * pitch;
                if (v * lanes() + lane < subtile.queries) {
                    load_bias_row(query, first_key, count, row);
                    query.next();
                } else {
                    std::fill_n(row, pitch, 0.0f);
                }
            }
            add_bias(shared_.scores + v * lanes(), kVectors * lanes(), keys, shared_.rows, pitch);
        }
    }

    void load_bias_row(const Query& query, int32_t first_key, int64_t count, float* row) const {
        if (group_.bias != nullptr) {
            const int64_t key_stride = group_.bias_stride.key;
            const int64_t offset = query.offset(group_.bias_stride) + key_stride * first_key;
            load_bias_row_(advance(group_.bias, group_.bias_dtype, offset), key_stride == 0 ? 1 : count, row);
            if (key_stride == 0) std::fill_n(row, kBlockKeys, row[0]);
        } else {
            std::fill_n(row, kBlockKeys, 0.0f);
        }
        if (group_.mask == nullptr) return;
        const uint8_t* const mask = group_.mask + query.offset(group_.mask_stride);
        if (group_.mask_stride.key != 0) return hide_masked(mask + first_key, count, row);
        if (*mask == 0) std::fill_n(row, kBlockKeys, kMinusInfinity);
    }

    template <int kVectors>
    void normalise(Subtile& subtile, int32_t keys) const {
        const auto rounded_by = [&](auto round) {
            softmax_block<kVectors>(shared_.scores, keys, positive_scale_, bias_log2(), round, subtile.softmax);
        };
        switch (group_.dtype) {
            case DType::f32:
                return rounded_by(KeepMantissa());
            case DType::bf16:
                return rounded_by(RoundMantissa(16, 0x1p-126f));
            case DType::f16:
                return rounded_by(RoundMantissa(13, 0x1p-14f));
            default:  // validate() lets no other through
                break;
        }
    }

    void finish(const Subtile& subtile) const {
        const int64_t pitch = pitch_of(group_.head_dim_v);
        Query query(subtile.first_query, group_.heads);
        HWY_ALIGN float weights[hn::MaxLanes(F32())] = {};
        for (int v = 0; v < subtile.vectors; ++v) {
            const int64_t last = std::min(lanes(), subtile.queries - v * lanes());
            if (group_.sinks != nullptr) weigh_against_sinks(subtile, v * lanes(), last, weights);
            for (int64_t c = 0; c < group_.head_dim_v; c += kTransposeColumns) {
                FourColumns columns = averages(subtile, v, c);
                if (group_.sinks != nullptr) {
                    for (VecF32& column : columns.column) column = hn::Mul(column, hn::Load(F32(), weights));
                }
                store_columns(columns, shared_.rows + c, pitch);
            }
            for (int64_t lane = 0; lane < last; ++lane, query.next()) {
                store_row_(shared_.rows + lane * pitch, group_.head_dim_v,
                           advance(group_.out, group_.dtype, query.offset(group_.out_stride)));
                if (group_.lse != nullptr) {
                    const double of_keys = log_sum_exp(subtile, v * lanes() + lane);
                    group_.lse[query.offset(group_.lse_stride)] =
                        static_cast<float>(group_.sinks == nullptr ? of_keys : log_add_exp(of_keys, sink_of(query)));
                }
            }
        }
    }

    // Columns c .. c + 3 of the output for vector v of the queries. A query without a key has the sum 0.
    FourColumns averages(const Subtile& subtile, int v, int64_t c) const {
        const F32 d;
        const VecF32 sum = hn::Load(d, subtile.softmax.sum + v * lanes());
        const auto empty = hn::Eq(sum, hn::Zero(d));
        FourColumns columns;
        for (int64_t i = 0; i < kTransposeColumns; ++i) {
            const VecF32 o = hn::Load(d, subtile.o + ((c + i) * subtile.vectors + v) * lanes());
            columns.column[i] = hn::IfThenZeroElse(empty, hn::Div(o, sum));
        }
        return columns;
    }

    // Of queries first .. first + count - 1 of the subtile: the share of the denominator that is not the sink's.
    void weigh_against_sinks(const Subtile& subtile, int64_t first, int64_t count, float* weights) const {
        Query query(subtile.first_query + first, group_.heads);
        for (int64_t i = 0; i < lanes(); ++i) {
            weights[i] = 1.0f;
            if (i >= count) continue;
            const KeySum keys = sum_of_keys(subtile, first + i);
            if (keys.logarithm != kMinusInfinity)  // the difference first: beside large numbers the logarithm is lost
                weights[i] = static_cast<float>(1 / (1 + std::exp(sink_of(query) - keys.top - keys.logarithm)));
            query.next();
        }
    }

    double sink_of(const Query& query) const { return group_.sinks[query.head * group_.sinks_stride]; }

    // Over the keys alone: exp(top + logarithm).
    struct KeySum {
        double top, logarithm;
    };
    KeySum sum_of_keys(const Subtile& subtile, int64_t i) const {
        const auto sum = static_cast<double>(subtile.softmax.sum[i]);
        if (sum == 0) return {0, kMinusInfinity};
        return {static_cast<double>(positive_scale_) * static_cast<double>(subtile.softmax.max[i]),
                std::log(sum) + std::numbers::ln2 * bias_log2()};
    }
    double log_sum_exp(const Subtile& subtile, int64_t i) const {
        const KeySum keys = sum_of_keys(subtile, i);
        return keys.top + keys.logarithm;
    }

    const HeadGroup& group_;
    const Range seen_;  // keys that some query of the sequence sees
    Workspace workspace_;
    Shared shared_;
    LoadRow load_row_;
    StoreRow store_row_;
    LoadRow load_bias_row_;
    bool scales_scores_;  // is a score more than q.k, to which softmax_block applies the scale?
    float query_factor_;
    float positive_scale_;
    std::optional<bool> values_are_finite_;  // of the packed block, once it is known
};

int64_t CountWorkspace(int64_t head_dim, int64_t head_dim_v, int64_t queries) {
    Workspace workspace(nullptr);
    take_shared(workspace, head_dim, head_dim_v);
    for (int64_t first = 0; first < queries; first += queries_per_subtile()) {
        take_subtile(workspace, head_dim, head_dim_v);
    }
    return workspace.used();
}

int64_t CountSubtileQueries() { return queries_per_subtile(); }

void ComputeTile(const HeadGroup& group, int64_t begin, int64_t end, float* memory) {
    Tile(group, memory).compute(begin, end);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foveal::cpu {
namespace {

HWY_EXPORT(CountSubtileQueries);
HWY_EXPORT(CountWorkspace);
HWY_EXPORT(ComputeTile);
HWY_EXPORT(TargetName);

}  // namespace

int64_t subtile_queries() { return HWY_DYNAMIC_DISPATCH(CountSubtileQueries)(); }

int64_t workspace_floats(int64_t head_dim, int64_t head_dim_v, int64_t queries) {
    return HWY_DYNAMIC_DISPATCH(CountWorkspace)(head_dim, head_dim_v, queries);
}

void compute_tile(const HeadGroup& group, int64_t begin, int64_t end, float* workspace) {
    HWY_DYNAMIC_DISPATCH(ComputeTile)(group, begin, end, workspace);
}

const char* simd_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace foveal::cpu
#endif
