#include "cpu/tile.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile.cpp"
#include <hwy/foreach_target.h>

#include "cpu/amx.hpp"
#include "cpu/convert.hpp"
#include "cpu/microkernel.hpp"
#include "cpu/packed_block.hpp"
#include "cpu/pairs.hpp"
#include "cpu/part.hpp"
#include "cpu/queries.hpp"
#include "cpu/scaling.hpp"
#include "cpu/softmax.hpp"
#include "cpu/subtile.hpp"
#include "cpu/subtile_scores.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

class Tile {
   public:
    Tile(const HeadGroup& group, float* memory)
        : group_(group),
          workspace_(memory),
          shared_(take_shared(workspace_, group.head_dim, group.head_dim_v)),
          scaling_(scaling_of(group)),
          load_row_(row_loader(group.q_dtype)),
          store_row_(row_storer(group.out_dtype)),
          scores_(group, shared_.rows),
          packed_(group, shared_),
          amx_(packed_.uses_amx()) {}

    void compute(int64_t begin, int64_t end) {
        for (const Subtile& subtile : attended(begin, end)) finish(subtile);
    }

    // Of the part's keys alone.
    void compute(int64_t begin, int64_t end, Range keys, const Part& part) {
        keys_ = keys;
        for (const Subtile& subtile : attended(begin, end)) leave_in(part, subtile);
    }

   private:
    std::vector<Subtile> attended(int64_t begin, int64_t end) {
        std::vector<Subtile> subtiles;
        for (int64_t first = begin; first < end; first += queries_per_subtile()) {
            subtiles.push_back(start(first, std::min(first + queries_per_subtile(), end)));
        }
        const Range blocks = blocks_of(subtiles);
        for (int32_t block = blocks.begin; block < blocks.end; ++block) {
            packed_.begin(block);
            for (Subtile& subtile : subtiles) {
                if (subtile.blocks.visit.contains(block)) attend(subtile, block);
            }
        }
        return subtiles;
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
        std::fill_n(subtile.o, output_rows(group_.head_dim_v) * width, 0.0f);
        std::fill_n(subtile.softmax.max, width, kMinusInfinity);
        std::fill_n(subtile.softmax.sum, width, 0.0f);
        subtile.softmax.rescale = shared_.rescale;
        scores_.find_keys(subtile, keys_);
        scores_.find_slopes(subtile);
        scores_.find_dropout(subtile);
        if (packed_.may_be_pairs())
            subtile.has_q_pairs = load_query_pairs(group_, subtile, load_row_, scaling_.query_factor, shared_.rows);
        const int64_t words = round_up(group_.head_dim, kTransposeColumns) / 2;
        if (subtile.has_q_pairs)
            std::fill_n(subtile.q_pairs + words * width, (query_words(group_.head_dim) - words) * width, 0u);
        return subtile;
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
        const bool uses_pairs = subtile.has_q_pairs && packed_.has_pairs();
        // Of the block, the register blocks of keys between the first and the last that any query sees.
        const auto rows = static_cast<int32_t>(uses_pairs && packed_.uses_amx() ? kAmxKeys : kRows);
        const int32_t first = block * kBlockKeys;
        const int32_t begin = std::max(subtile.keys.begin - first, 0) / rows * rows;
        const int32_t end = std::min(subtile.keys.end - first, kBlockKeys);
        const int32_t keys = (end - begin + rows - 1) / rows * rows;

        const bool masked = !subtile.blocks.unmasked.contains(block);
#if FOVEAL_TARGET_HAS_PAIRS
        if (uses_pairs) return attend_pairs<kVectors>(subtile, first, {begin, begin + keys}, masked);
#endif
        if (!subtile.has_q) load_queries(group_, subtile, load_row_, scaling_.query_factor, shared_.rows);
        subtile.has_q = true;
        const int64_t k_pitch = pitch_of(group_.head_dim);
        score_keys<Floats, kVectors>(subtile.q, packed_.k() + begin * k_pitch, k_pitch, group_.head_dim, keys,
                                     shared_.scores);
        change_scores<kVectors>(subtile, first + begin, keys, masked);
        with_rounding(group_.dtype, [&](auto round) {
            normalise<kVectors>(subtile, first + begin, keys, FloatWeights<decltype(round)>{round});
        });
        const SeenKeys seen{first + begin, subtile.key_begin, subtile.key_end};
        const bool all_count = !masked || packed_.values_are_finite();
        const int64_t v_pitch = pitch_of(group_.head_dim_v);
        for (int64_t c = 0; c < group_.head_dim_v; c += kRows) {
            const float* values = packed_.v() + begin * v_pitch + c;
            float* const o = subtile.o + c * kVectors * lanes();
            if (all_count)
                accumulate_values<Floats, kVectors>(shared_.scores, values, v_pitch, keys, shared_.rescale, o);
            else
                accumulate_seen_values<kVectors>(shared_.scores, values, v_pitch, keys, seen, shared_.rescale, o);
        }
    }

#if FOVEAL_TARGET_HAS_PAIRS
    // Keys `keys` of the block from key `first` on, in bf16. What is packed so is finite: 0 * v is 0.
    template <int kVectors>
    void attend_pairs(Subtile& subtile, int32_t first, Range keys, bool masked) {
        const int64_t k_pitch = pairs_pitch_of(group_.head_dim);
        const uint32_t* const k = shared_.k_pairs + keys.begin * k_pitch;
        if (packed_.uses_amx())
            amx_score_keys(subtile.q_pairs, kVectors, k, k_pitch, query_words(group_.head_dim), keys.size(),
                           shared_.scores);
        else
            score_keys<Pairs, kVectors>(subtile.q_pairs, k, k_pitch, (group_.head_dim + 1) / 2, keys.size(),
                                        shared_.scores);
        change_scores<kVectors>(subtile, first + keys.begin, keys.size(), masked);
        normalise<kVectors>(subtile, first + keys.begin, keys.size(), PairWeights());
        const auto* const weights = reinterpret_cast<const uint32_t*>(shared_.scores);
        if (packed_.uses_amx()) {
            const int64_t channels = output_rows(group_.head_dim_v);
            rescale_rows<kVectors>(shared_.rescale, channels, subtile.o);
            return amx_accumulate_values(weights, kVectors, shared_.v_tiles + keys.begin / kAmxKeys * kAmxTile,
                                         kValueTiles * kAmxTile, channels, keys.size(), subtile.o);
        }
        const int64_t v_pitch = pitch_of(group_.head_dim_v);
        for (int64_t c = 0; c < group_.head_dim_v; c += kRows)
            accumulate_values<Pairs, kVectors>(weights, shared_.v_pairs + keys.begin / 2 * v_pitch + c, v_pitch,
                                               keys.size() / 2, shared_.rescale, subtile.o + c * kVectors * lanes());
    }
#endif

    // From q.k to what the softmax takes.
    template <int kVectors>
    void change_scores(const Subtile& subtile, int32_t first_key, int32_t keys, bool masked) const {
        if (scaling_.scales_scores) {
            scores_.scale_or_cap<kVectors>(shared_.scores, keys);
            scores_.add_slopes<kVectors>(subtile, shared_.scores, first_key, keys);
        }
        scores_.add_bias_rows<kVectors>(subtile, shared_.scores, first_key, keys);
        if (masked) scores_.hide<kVectors>(subtile, shared_.scores, first_key, keys);
    }

    template <int kVectors, class Weights>
    void normalise(Subtile& subtile, int32_t first_key, int32_t keys, const Weights& weights) const {
        softmax_block<kVectors>(shared_.scores, keys, scaling_.positive_scale, scaling_.bias_log2, weights,
                                subtile.softmax);
        if (!group_.drops_weights()) return;
        const DroppedOfQueries dropped = scores_.dropped_of(subtile);
        if constexpr (Weights::kInPairs)
            drop_weight_pairs<kVectors>(reinterpret_cast<uint32_t*>(shared_.scores), first_key, keys, dropped);
        else
            drop_weights<kVectors>(shared_.scores, first_key, keys, dropped);
    }

    // As rows, which is how parts are merged.
    void leave_in(const Part& part, const Subtile& subtile) const {
        const int64_t pitch = pitch_of(group_.head_dim_v);
        for (int v = 0; v < subtile.vectors; ++v) {
            for (int64_t c = 0; c < group_.head_dim_v; c += kTransposeColumns)
                store_columns(output_columns(subtile, v, c), shared_.rows + c, pitch);
            const int64_t last = std::min(lanes(), subtile.queries - v * lanes());
            for (int64_t lane = 0; lane < last; ++lane) {
                const int64_t query = subtile.first_query + v * lanes() + lane;
                part.max[query] = subtile.softmax.max[v * lanes() + lane];
                part.sum[query] = subtile.softmax.sum[v * lanes() + lane];
                std::copy_n(shared_.rows + lane * pitch, group_.head_dim_v, part.out + query * part.pitch);
            }
        }
    }

    void finish(const Subtile& subtile) const {
        const int64_t pitch = pitch_of(group_.head_dim_v);
        Query query(subtile.first_query, group_.heads);
        HWY_ALIGN float weights[hn::MaxLanes(F32())] = {};
        for (int v = 0; v < subtile.vectors; ++v) {
            const int64_t last = std::min(lanes(), subtile.queries - v * lanes());
            const bool weighs = group_.sinks != nullptr || group_.drops_weights();
            if (weighs) weigh(subtile, v * lanes(), last, weights);
            for (int64_t c = 0; c < group_.head_dim_v; c += kTransposeColumns) {
                FourColumns columns = averages(subtile, v, c);
                if (weighs) {
                    for (VecF32& column : columns.column) column = hn::Mul(column, hn::Load(F32(), weights));
                }
                store_columns(columns, shared_.rows + c, pitch);
            }
            for (int64_t lane = 0; lane < last; ++lane, query.next()) {
                store_row_(shared_.rows + lane * pitch, group_.head_dim_v,
                           advance(group_.out, group_.out_dtype, query.offset(group_.out_stride)));
                if (group_.lse != nullptr) {
                    const double of_keys = sum_of_keys(subtile, v * lanes() + lane).log_sum_exp();
                    group_.lse[query.offset(group_.lse_stride)] = static_cast<float>(
                        group_.sinks == nullptr ? of_keys : log_add_exp(of_keys, group_.sink_of(query.head)));
                }
            }
        }
    }

    // Columns c .. c + 3 of the sums of p * v for vector v of the queries.
    static FourColumns output_columns(const Subtile& subtile, int v, int64_t c) {
        FourColumns columns;
        for (int64_t i = 0; i < kTransposeColumns; ++i)
            columns.column[i] = hn::Load(F32(), subtile.o + ((c + i) * subtile.vectors + v) * lanes());
        return columns;
    }

    // Columns c .. c + 3 of the output for vector v of the queries. A query without a key has the sum 0.
    FourColumns averages(const Subtile& subtile, int v, int64_t c) const {
        const F32 d;
        const VecF32 sum = hn::Load(d, subtile.softmax.sum + v * lanes());
        const auto empty = hn::Eq(sum, hn::Zero(d));
        FourColumns columns = output_columns(subtile, v, c);
        for (VecF32& column : columns.column) column = hn::IfThenZeroElse(empty, hn::Div(column, sum));
        return columns;
    }

    // Of queries first .. first + count - 1 of the subtile: the share of the denominator that is not the sink's, times
    // dropout's scale.
    void weigh(const Subtile& subtile, int64_t first, int64_t count, float* weights) const {
        Query query(subtile.first_query + first, group_.heads);
        for (int64_t i = 0; i < lanes(); ++i) {
            weights[i] = group_.dropout_scale;
            if (i >= count || group_.sinks == nullptr) continue;
            weights[i] *= weight_against_sink(sum_of_keys(subtile, first + i), group_.sink_of(query.head));
            query.next();
        }
    }

    // Over the keys alone.
    KeySum sum_of_keys(const Subtile& subtile, int64_t i) const {
        return scaling_.sum_of_keys(subtile.softmax.max[i], subtile.softmax.sum[i]);
    }

    const HeadGroup& group_;
    Workspace workspace_;
    Shared shared_;
    Scaling scaling_;
    Range keys_{0, std::numeric_limits<int32_t>::max()};  // of the part, if it computes one
    LoadRow load_row_;
    StoreRow store_row_;
    SubtileScores scores_;
    PackedBlock packed_;
    const AmxRegisters amx_;
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

void ComputeTileOfPart(const HeadGroup& group, int64_t begin, int64_t end, Range keys, const Part& part,
                       float* memory) {
    Tile(group, memory).compute(begin, end, keys, part);
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
HWY_EXPORT(ComputeTileOfPart);
HWY_EXPORT(TargetName);

}  // namespace

int64_t subtile_queries() { return HWY_DYNAMIC_DISPATCH(CountSubtileQueries)(); }

int64_t workspace_floats(int64_t head_dim, int64_t head_dim_v, int64_t queries) {
    return HWY_DYNAMIC_DISPATCH(CountWorkspace)(head_dim, head_dim_v, queries);
}

void compute_tile(const HeadGroup& group, int64_t begin, int64_t end, float* workspace) {
    HWY_DYNAMIC_DISPATCH(ComputeTile)(group, begin, end, workspace);
}

void compute_tile_of_part(const HeadGroup& group, int64_t begin, int64_t end, Range keys, const Part& part,
                          float* workspace) {
    HWY_DYNAMIC_DISPATCH(ComputeTileOfPart)(group, begin, end, keys, part, workspace);
}

const char* simd_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace foveal::cpu
#endif
