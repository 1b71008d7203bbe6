#include "cpu/backward_tile.hpp"

#include <algorithm>
#include <limits>

#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward_tile.cpp"
#include <hwy/foreach_target.h>

#include "cpu/ask_ahead.hpp"
#include "cpu/backward_memory.hpp"
#include "cpu/backward_microkernel.hpp"
#include "cpu/backward_rows.hpp"
#include "cpu/convert.hpp"
#include "cpu/microkernel.hpp"
#include "cpu/pack.hpp"
#include "cpu/pairs.hpp"
#include "cpu/scaling.hpp"
#include "cpu/score_gradients.hpp"
#include "cpu/subtile.hpp"
#include "cpu/subtile_scores.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace {

class BackwardTile {
   public:
    BackwardTile(const BackwardGroup& group, float* memory)
        : group_(group),
          of_(group.forward),
          workspace_(memory),
          memory_(take_memory(workspace_, of_.head_dim, of_.head_dim_v)),
          scaling_(scaling_of(of_)),
          load_row_(row_loader(of_.dtype)),
          scores_(of_, memory_.rows),
          may_be_pairs_(of_.dtype == DType::bf16 && has_bf16_pairs()) {
        std::fill_n(memory_.ones, queries_per_subtile(), 1.0f);
    }

    void compute(Range keys, SumOrder& order, int32_t part) {
        keys_ = keys;
        pack_keys();
        std::fill_n(memory_.dk, keys.size() * k_pitch(), 0.0f);
        std::fill_n(memory_.dv, keys.size() * v_pitch(), 0.0f);
        const Range visits = order.visits_of(part);
        for (int32_t number = visits.begin; number < visits.end; ++number) {
            const Subtile subtile = start(number);
            if (number + 1 < visits.end) ask_for_rows(number + 1);
            std::fill_n(memory_.dq, group_.dq == nullptr ? 0 : rows_of_dq(of_.head_dim) * width(subtile), 0.0f);
            std::fill_n(memory_.distances, queries_per_subtile(), 0.0f);
            for (int32_t block = subtile.blocks.visit.begin; block < subtile.blocks.visit.end; ++block)
                each_width(subtile, [&](auto vectors) { attend<vectors>(subtile, block); });
            if (group_.dalibi != nullptr) add_to_slopes(subtile);
            if (group_.dq == nullptr) continue;
            order.wait(part, number);
            add_to_dq(subtile, number);
            order.done(part, number);
        }
        store_keys(memory_.dk, k_pitch(), of_.head_dim, of_.scale, group_.dk_dtype, group_.dk, group_.dk_row);
        store_keys(memory_.dv, v_pitch(), of_.head_dim_v, of_.dropout_scale, group_.dv_dtype, group_.dv, group_.dv_row);
    }

    void add_score_gradients(int32_t number, Range keys, float* sums) {
        keys_ = keys;
        pack_keys();
        const Subtile subtile = start(number);
        const int32_t block = keys.begin / kBlockKeys;
        if (!subtile.blocks.visit.contains(block)) return;
        each_width(subtile, [&](auto vectors) {
            const Range run = keys_of(subtile, block);
            differentiate<vectors>(subtile, block, run);
            for (int32_t j = 0; j < run.size(); ++j)
                for (int64_t i = 0; i < width(subtile); ++i)
                    sums[(run.begin + j) * queries_per_subtile() + i] += memory_.dscores[j * width(subtile) + i];
        });
    }

   private:
    int64_t k_pitch() const { return pitch_of(of_.head_dim); }
    int64_t v_pitch() const { return pitch_of(of_.head_dim_v); }
    static int64_t width(const Subtile& subtile) { return subtile.vectors * lanes(); }

    template <class Body>
    static void each_width(const Subtile& subtile, Body&& body) {
        switch (subtile.vectors) {
            case 1:
                return body(std::integral_constant<int, 1>());
            case 2:
                return body(std::integral_constant<int, 2>());
            default:
                return body(std::integral_constant<int, kMaxVectors>());
        }
    }

    void pack_keys() {
        const Range seen = seen_keys(of_.band, of_.len_q);
        for (int32_t first = keys_.begin; first < keys_.end; first += kBlockKeys) {
            const BlockOfRows rows{first, keys_.end, seen};
            pack_rows(load_row_, of_.k, of_.head_dim, rows, memory_.k + (first - keys_.begin) * k_pitch());
            pack_rows(load_row_, of_.v, of_.head_dim_v, rows, memory_.v + (first - keys_.begin) * v_pitch());
            const int32_t row = first - keys_.begin;
            block_has_pairs_[row / kBlockKeys] =
                may_be_pairs_ &&
                pack_key_pairs(of_.k, of_.head_dim, rows, memory_.k_pairs + row * pairs_pitch_of(of_.head_dim)) &&
                pack_key_pairs(of_.v, of_.head_dim_v, rows, memory_.v_pairs + row * pairs_pitch_of(of_.head_dim_v));
        }
    }

    Subtile start(int32_t number) {
        Subtile subtile{};
        subtile.first_query = number * queries_per_subtile();
        subtile.queries = std::min(queries_per_subtile(), of_.queries() - subtile.first_query);
        subtile.vectors = static_cast<int>((subtile.queries + lanes() - 1) / lanes());
        subtile.key_begin = memory_.key_begin;
        subtile.key_end = memory_.key_end;
        subtile.position = memory_.position;
        subtile.slope = memory_.slope;
        subtile.dropout_row = memory_.dropout_row;
        subtile.dropout_head = memory_.dropout_head;
        scores_.find_keys(subtile, keys_);
        scores_.find_slopes(subtile);
        scores_.find_dropout(subtile);
        if (subtile.blocks.visit.size() == 0) return subtile;
        load_rows(subtile, of_.q, of_.q_stride, of_.head_dim, memory_.q);
        load_rows(subtile, group_.dout, group_.dout_stride, of_.head_dim_v, memory_.dout);
        subtile.has_q_pairs =
            may_be_pairs_ &&
            transpose_row_pairs(memory_.q, of_.head_dim, subtile.vectors, scaling_.query_factor,
                                memory_.q_pair_columns) &&
            transpose_row_pairs(memory_.dout, of_.head_dim_v, subtile.vectors, 1.0f, memory_.dout_pair_columns);
        const Range blocks = subtile.blocks.visit;
        for (int32_t block = blocks.begin; block < blocks.end && !subtile.has_q; ++block) {
            if (uses_pairs(subtile, block)) continue;
            transpose(subtile, memory_.q, of_.head_dim, scaling_.query_factor, memory_.q_columns);
            transpose(subtile, memory_.dout, of_.head_dim_v, 1.0f, memory_.dout_columns);
            subtile.has_q = true;
        }
        return subtile;
    }

    bool uses_pairs(const Subtile& subtile, int32_t block) const {
        return subtile.has_q_pairs && block_has_pairs_[block - keys_.begin / kBlockKeys];
    }

    // Of a subtile that is next.
    void ask_for_rows(int32_t number) const {
        const int64_t first = number * queries_per_subtile();
        Query query(first, of_.heads);
        for (int64_t i = first; i < std::min(first + queries_per_subtile(), of_.queries()); ++i, query.next()) {
            ask_ahead(advance(of_.q, of_.dtype, query.offset(of_.q_stride)), of_.head_dim * bytes_of(of_.dtype));
            ask_ahead(advance(group_.dout, of_.dtype, query.offset(group_.dout_stride)),
                      of_.head_dim_v * bytes_of(of_.dtype));
        }
    }

    // Rows of queries as floats. Those that see no key, or of which no key counts, may hold anything: they are zeros.
    void load_rows(const Subtile& subtile, const void* from, const Strides& stride, int64_t columns, float* to) const {
        const int64_t pitch = pitch_of(columns);
        Query query(subtile.first_query, of_.heads);
        for (int64_t i = 0; i < width(subtile); ++i, to += pitch) {
            const bool counts = i < subtile.queries && subtile.key_begin[i] < subtile.key_end[i] &&
                                group_.shift[subtile.first_query + i] != std::numeric_limits<float>::infinity();
            if (counts)
                load_row_(advance(from, of_.dtype, query.offset(stride)), columns, to);
            else
                std::fill_n(to, pitch, 0.0f);
            if (i + 1 < subtile.queries) query.next();
        }
    }

    static void transpose(const Subtile& subtile, const float* rows, int64_t columns, float factor, float* to) {
        const int64_t pitch = pitch_of(columns);
        const VecF32 factors = hn::Set(F32(), factor);
        for (int v = 0; v < subtile.vectors; ++v) {
            for (int64_t c = 0; c < columns; c += kTransposeColumns) {
                const FourColumns four = load_columns(rows + v * lanes() * pitch + c, pitch);
                for (int64_t n = 0; n < kTransposeColumns; ++n)
                    hn::Store(hn::Mul(four.column[n], factors), F32(), to + ((c + n) * subtile.vectors + v) * lanes());
            }
        }
    }

    // Of the block, the register blocks of keys between the first and the last that any query sees, from its first key.
    static Range keys_of(const Subtile& subtile, int32_t block) {
        const int32_t first = block * kBlockKeys;
        const int32_t begin = std::max(subtile.keys.begin - first, 0) / kRows * kRows;
        const int32_t end = std::min(subtile.keys.end - first, kBlockKeys);
        return {begin, begin + (end - begin + kRows - 1) / kRows * kRows};
    }

    // scores becomes p (under dropout without its scale, which store_keys() multiplies dv by), dscores dx, both [keys
    // of run, kVectors * lanes()].
    template <int kVectors>
    void differentiate(const Subtile& subtile, int32_t block, Range run) const {
        const int32_t keys = run.size(), first_key = block * kBlockKeys + run.begin;
        const int64_t row = first_key - keys_.begin;
        float* const x = memory_.scores;
        if (uses_pairs(subtile, block)) {
            multiply_pairs<kVectors>(row, keys);
        } else {
            score_keys<Floats, kVectors>(memory_.q_columns, memory_.k + row * k_pitch(), k_pitch(), of_.head_dim, keys,
                                         x);
            score_keys<Floats, kVectors>(memory_.dout_columns, memory_.v + row * v_pitch(), v_pitch(), of_.head_dim_v,
                                         keys, memory_.dscores);
        }
        if (scaling_.scales_scores) {
            scores_.scale_or_cap<kVectors>(x, keys);
            if (of_.softcap > 0) std::copy_n(x, keys * kVectors * lanes(), memory_.capped);
            scores_.add_slopes<kVectors>(subtile, x, first_key, keys);
        }
        scores_.add_bias_rows<kVectors>(subtile, x, first_key, keys);
        if (!subtile.blocks.unmasked.contains(block)) scores_.hide<kVectors>(subtile, x, first_key, keys);
        const float* const shift = group_.shift + subtile.first_query;
        const float* const delta = group_.delta + subtile.first_query;
        if (of_.drops_weights())
            differentiate_dropped_softmax<kVectors>(x, memory_.dscores, first_key, keys, scaling_.positive_scale, shift,
                                                    delta, of_.dropout_scale, scores_.dropped_of(subtile));
        else
            differentiate_softmax<kVectors>(x, memory_.dscores, keys, scaling_.positive_scale, shift, delta);
    }

    // q.k and dout.v of keys from row `row` of the part on.
    template <int kVectors>
    void multiply_pairs([[maybe_unused]] int64_t row, [[maybe_unused]] int32_t keys) const {
#if FOVEAL_TARGET_HAS_PAIRS
        const int64_t k_pitch = pairs_pitch_of(of_.head_dim), v_pitch = pairs_pitch_of(of_.head_dim_v);
        score_keys<Pairs, kVectors>(memory_.q_pair_columns, memory_.k_pairs + row * k_pitch, k_pitch,
                                    (of_.head_dim + 1) / 2, keys, memory_.scores);
        score_keys<Pairs, kVectors>(memory_.dout_pair_columns, memory_.v_pairs + row * v_pitch, v_pitch,
                                    (of_.head_dim_v + 1) / 2, keys, memory_.dscores);
#endif
    }

    template <int kVectors>
    void attend(const Subtile& subtile, int32_t block) const {
        const Range run = keys_of(subtile, block);
        const int32_t keys = run.size(), first_key = block * kBlockKeys + run.begin;
        const int64_t row = first_key - keys_.begin, pitch = kVectors * lanes();
        differentiate<kVectors>(subtile, block, run);
        float* const ds = memory_.dscores;
        if (group_.dalibi != nullptr) add_distances<kVectors>(ds, first_key, keys, memory_.position, memory_.distances);
        if (of_.softcap > 0) differentiate_cap(ds, memory_.capped, keys * pitch, of_.softcap);
        if (group_.dv != nullptr)
            accumulate_rows(memory_.scores, pitch, memory_.dout, v_pitch(), subtile.queries, keys, of_.head_dim_v,
                            memory_.dv + row * v_pitch());
        if (group_.dk != nullptr)
            accumulate_rows(ds, pitch, memory_.q, k_pitch(), subtile.queries, keys, of_.head_dim,
                            memory_.dk + row * k_pitch());
        if (group_.dq == nullptr) return;
        for (int64_t c = 0; c < of_.head_dim; c += kRows)
            accumulate_values<Floats, kVectors>(ds, memory_.k + row * k_pitch() + c, k_pitch(), keys, memory_.ones,
                                                memory_.dq + c * pitch);
    }

    void add_to_slopes(const Subtile& subtile) const {
        Query query(subtile.first_query, of_.heads);
        for (int64_t i = 0; i < subtile.queries; ++i, query.next())
            group_.dalibi[query.head] -= static_cast<double>(memory_.distances[i]);
    }

    // The sums of a subtile are as far apart as those of a whole one; within, they lie as in the subtile's own.
    void add_to_dq(const Subtile& subtile, int32_t number) const {
        float* const sums = group_.dq + number * rows_of_dq(of_.head_dim) * queries_per_subtile();
        const int64_t count = rows_of_dq(of_.head_dim) * width(subtile);
        for (int64_t i = 0; i < count; i += lanes())
            hn::Store(hn::Add(hn::Load(F32(), sums + i), hn::Load(F32(), memory_.dq + i)), F32(), sums + i);
    }

    void store_keys(float* sums, int64_t pitch, int64_t columns, float factor, DType dtype, void* to,
                    int64_t row_stride) const {
        if (to == nullptr) return;
        const StoreRow store_row = row_storer(dtype);
        for (int32_t j = 0; j < keys_.size(); ++j, sums += pitch) {
            for (int64_t c = 0; c < columns; c += lanes())
                hn::Store(hn::Mul(hn::Load(F32(), sums + c), hn::Set(F32(), factor)), F32(), sums + c);
            store_row(sums, columns, advance(to, dtype, (keys_.begin + j) * row_stride));
        }
    }

    const BackwardGroup& group_;
    const HeadGroup& of_;
    Workspace workspace_;
    const BackwardMemory memory_;
    const Scaling scaling_;
    const LoadRow load_row_;
    const SubtileScores scores_;
    const bool may_be_pairs_;
    bool block_has_pairs_[kMostBlocks] = {};
    Range keys_{0, 0};
};

int32_t CountPartKeys(int64_t head_dim, int64_t head_dim_v) { return part_keys(head_dim, head_dim_v); }

int64_t CountDqRows(int64_t head_dim) { return rows_of_dq(head_dim); }

int64_t CountBackwardWorkspace(int64_t head_dim, int64_t head_dim_v) {
    Workspace workspace(nullptr);
    take_memory(workspace, head_dim, head_dim_v);
    return workspace.used();
}

void ComputeGradients(const BackwardGroup& group, Range keys, SumOrder& order, int32_t part, float* memory) {
    BackwardTile(group, memory).compute(keys, order, part);
}

void AddScoreGradients(const BackwardGroup& group, int64_t subtile, Range keys, float* sums, float* memory) {
    BackwardTile(group, memory).add_score_gradients(static_cast<int32_t>(subtile), keys, sums);
}

void PrepareRows(const BackwardGroup& group, int64_t begin, int64_t end, float* memory) {
    for (int64_t first = begin; first < end; first += lanes()) prepare_vector(group, first, memory);
}

void StoreDq(const BackwardGroup& group, int64_t begin, int64_t end, DType dtype, void* dq, const Strides& stride,
             float* memory) {
    const HeadGroup& of = group.forward;
    const StoreRow store = row_storer(dtype);
    const int64_t pitch = pitch_of(of.head_dim);
    const VecF32 factor = hn::Set(F32(), of.scale);
    for (int64_t first = begin; first < end; first += queries_per_subtile()) {
        const int64_t queries = std::min(queries_per_subtile(), end - first);
        const int64_t vectors = (queries + lanes() - 1) / lanes();
        const float* const sums = group.dq + first * rows_of_dq(of.head_dim);
        Query query(first, of.heads);
        for (int64_t v = 0; v < vectors; ++v) {
            for (int64_t c = 0; c < of.head_dim; c += kTransposeColumns) {
                FourColumns four;
                for (int64_t n = 0; n < kTransposeColumns; ++n)
                    four.column[n] = hn::Mul(hn::Load(F32(), sums + ((c + n) * vectors + v) * lanes()), factor);
                store_columns(four, memory + c, pitch);
            }
            for (int64_t lane = 0; lane < std::min(lanes(), queries - v * lanes()); ++lane, query.next())
                store(memory + lane * pitch, of.head_dim, advance(dq, dtype, query.offset(stride)));
        }
    }
}

void StoreFloats(const float* from, int64_t size, DType dtype, void* to) { row_storer(dtype)(from, size, to); }

}  // namespace
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace foveal::cpu {
namespace {

HWY_EXPORT(CountPartKeys);
HWY_EXPORT(CountDqRows);
HWY_EXPORT(CountBackwardWorkspace);
HWY_EXPORT(ComputeGradients);
HWY_EXPORT(AddScoreGradients);
HWY_EXPORT(PrepareRows);
HWY_EXPORT(StoreDq);
HWY_EXPORT(StoreFloats);

}  // namespace

int32_t backward_part_keys(int64_t head_dim, int64_t head_dim_v) {
    return HWY_DYNAMIC_DISPATCH(CountPartKeys)(head_dim, head_dim_v);
}

int64_t dq_rows(int64_t head_dim) { return HWY_DYNAMIC_DISPATCH(CountDqRows)(head_dim); }

int64_t backward_workspace_floats(int64_t head_dim, int64_t head_dim_v) {
    return HWY_DYNAMIC_DISPATCH(CountBackwardWorkspace)(head_dim, head_dim_v);
}

void prepare_rows(const BackwardGroup& group, int64_t begin, int64_t end, float* workspace) {
    HWY_DYNAMIC_DISPATCH(PrepareRows)(group, begin, end, workspace);
}

void compute_gradients(const BackwardGroup& group, Range keys, SumOrder& order, int32_t part, float* workspace) {
    HWY_DYNAMIC_DISPATCH(ComputeGradients)(group, keys, order, part, workspace);
}

void add_score_gradients(const BackwardGroup& group, int64_t subtile, Range keys, float* sums, float* workspace) {
    HWY_DYNAMIC_DISPATCH(AddScoreGradients)(group, subtile, keys, sums, workspace);
}

void store_dq(const BackwardGroup& group, int64_t begin, int64_t end, DType dtype, void* dq, const Strides& stride,
              float* workspace) {
    HWY_DYNAMIC_DISPATCH(StoreDq)(group, begin, end, dtype, dq, stride, workspace);
}

void store_floats(const float* from, int64_t size, DType dtype, void* to) {
    HWY_DYNAMIC_DISPATCH(StoreFloats)(from, size, dtype, to);
}

}  // namespace foveal::cpu
#endif
