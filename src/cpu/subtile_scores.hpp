// What a subtile's queries see, and what becomes of q.k before the softmax: the forward and the backward pass ask here.
#if defined(FOVEAL_CPU_SUBTILE_SCORES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SUBTILE_SCORES_HPP
#undef FOVEAL_CPU_SUBTILE_SCORES_HPP
#else
#define FOVEAL_CPU_SUBTILE_SCORES_HPP
#endif

#include <algorithm>

#include "cpu/bias_row.hpp"
#include "cpu/convert.hpp"
#include "cpu/dropout.hpp"
#include "cpu/scores.hpp"
#include "cpu/simd.hpp"
#include "cpu/softmax.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"
#include "problem/mask.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

class SubtileScores {
   public:
    // rows: [lanes(), kBlockKeys] with pitch_of(kBlockKeys), to work in.
    SubtileScores(const HeadGroup& group, float* rows)
        : group_(group), rows_(rows), load_bias_row_(row_loader(group.bias_dtype)) {}

    // Fills key_begin, key_end, keys and blocks: of the keys in `keys`, those that the queries see.
    void find_keys(Subtile& subtile, Range keys) const {
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
        subtile.keys = {std::max(visible_keys(group_.band, first_row).begin, keys.begin), std::min(seen.end, keys.end)};
        subtile.blocks = kv_range(group_.band, {first_row, query.row + 1}, kBlockKeys);
        Range& visit = subtile.blocks.visit;
        visit.begin = std::max(visit.begin, keys.begin / kBlockKeys);
        visit.end = std::max(std::min(visit.end, (keys.end - 1) / kBlockKeys + 1), visit.begin);
    }

    // Fills position and slope, where there are slopes.
    void find_slopes(Subtile& subtile) const {
        if (group_.alibi_slopes == nullptr) return;
        Query query(subtile.first_query, group_.heads);
        for (int64_t i = 0; i < subtile.vectors * lanes(); ++i) {
            subtile.position[i] = query.row + group_.band.off;
            subtile.slope[i] =
                finite_slope(group_.alibi_slopes[query.head * group_.alibi_stride], group_.most_distance());
            if (i + 1 < subtile.queries) query.next();
        }
    }

    // Fills dropout_row and dropout_head, where weights are dropped.
    void find_dropout(Subtile& subtile) const {
        if (!group_.drops_weights()) return;
        Query query(subtile.first_query, group_.heads);
        for (int64_t i = 0; i < subtile.vectors * lanes(); ++i) {
            subtile.dropout_row[i] = static_cast<uint32_t>(query.row);
            subtile.dropout_head[i] = group_.dropout_head + static_cast<uint32_t>(query.head);
            if (i + 1 < subtile.queries) query.next();
        }
    }
    DroppedOfQueries dropped_of(const Subtile& subtile) const {
        return {group_.dropout_key, group_.dropout_threshold, subtile.dropout_row, subtile.dropout_head};
    }

    // The steps from q.k to a score, in this order. scores: [keys, kVectors * lanes()], first_key the number of its
    // first, keys a multiple of kRows.
    template <int kVectors>
    void scale_or_cap(float* scores, int32_t keys) const {
        const int64_t count = keys * kVectors * lanes();
        if (group_.softcap > 0)
            cap_scores(scores, count, group_.scale, group_.softcap);
        else
            scale_scores(scores, count, group_.scale);
    }
    template <int kVectors>
    void add_slopes(const Subtile& subtile, float* scores, int32_t first_key, int32_t keys) const {
        if (group_.alibi_slopes != nullptr)
            add_alibi<kVectors>(scores, first_key, keys, subtile.position, subtile.slope);
    }
    // Of bias, boolean mask and tree. What the rows hold beyond the sequence's keys is hidden afterwards, as are those
    // keys' scores.
    template <int kVectors>
    void add_bias_rows(const Subtile& subtile, float* scores, int32_t first_key, int32_t keys) const {
        if (!group_.has_bias_row(first_key, keys)) return;
        const int64_t pitch = pitch_of(kBlockKeys);
        const int64_t count = std::min(keys, group_.len_k - first_key);
        Query query(subtile.first_query, group_.heads);
        if (group_.shares_bias_row()) {
            load_bias_row(group_, load_bias_row_, query, first_key, count, rows_);
            return add_shared_bias(scores, kVectors * lanes(), keys, rows_);
        }
        for (int v = 0; v < kVectors; ++v) {
            for (int64_t lane = 0; lane < lanes(); ++lane) {
                float* const row = rows_ + lane * pitch;
                if (v * lanes() + lane < subtile.queries) {
                    load_bias_row(group_, load_bias_row_, query, first_key, count, row);
                    query.next();
                } else {
                    std::fill_n(row, pitch, 0.0f);
                }
            }
            add_bias(scores + v * lanes(), kVectors * lanes(), keys, rows_, pitch);
        }
    }
    template <int kVectors>
    void hide(const Subtile& subtile, float* scores, int32_t first_key, int32_t keys) const {
        mask_scores<kVectors>(scores, first_key, keys, subtile.key_begin, subtile.key_end);
    }

   private:
    const HeadGroup& group_;
    float* const rows_;
    const LoadRow load_bias_row_;
};

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
