// What a score is beyond scale * q.k under a window (contract 1.2): softcap (softcap.cuh), ALiBi (alibi.cuh), bias and
// boolean mask (matrix.cuh). Only kernels with all options come here, and those with softcap alone; a bias alone takes
// a way of its own (staged_bias.cuh). All of it happens in the registers that hold Q K^T, before the softmax. Which
// keys are seen is said by problem/mask.hpp for a sequence and by mask.hpp for a thread.
//
// Scores are in natural units, as the contract has them: in base 2 those near the end of f16 would be rounded to
// coarser steps than the reference's.
#pragma once

#include "sm90/ptx/warp.cuh"
#include "sm90/scores/alibi.cuh"
#include "sm90/scores/matrix.cuh"
#include "sm90/scores/options.hpp"
#include "sm90/scores/softcap.cuh"
#include "sm90/scores/staged_bias.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// kOnlySoftcap: of all options only this can be set. Work: what describes the operation's tile, of which `batch`,
// `len_q`, `band` and `seen` are read, where they are needed (sm90/forward/work.cuh).
template <DType kType, int32_t kKeys, bool kOnlySoftcap, class Work>
class Scores {
    static constexpr int32_t kScores = Fragment::size(kKeys);

   public:
    // The thread's scores are those of two of the warp's rows against keys from first_key on (tile/fragment.hpp). rows:
    // with the first `query`, the `head` and its ALiBi `slope`.
    template <class Segment>
    __device__ __forceinline__ Scores(const ScoreOptions& options, const Work& work, const Segment& rows,
                                      int32_t first_key, int32_t lane)
        : options_(options),
          work_(work),
          slope_(rows.slope),
          head_(rows.head),
          row_(rows.query + Fragment::first_row(lane)),
          first_key_(first_key + Fragment::first_column(lane)) {}

    // From q.k to the score. true: softcap took the exact form.
    __device__ __forceinline__ bool apply(float (&s)[kScores]) const {
        const auto strays = [this] { return has_strays(); };
        if constexpr (kOnlySoftcap) return cap(options_, s, strays);
        bool exactly = false;
        float factor = options_.scale;  // by which the scores are still to be multiplied
        if (options_.softcap > 0) {
            if (options_.inverse_softcap > 0)
                cap_widely(options_, s);
            else
                exactly = cap(options_, s, strays);
            factor = 1.0f;
        }
        if (options_.alibi_slopes != nullptr) {
            subtract_distances(s, factor, finite_slope(slope_, work_.len_q, work_.band.len_k), distance());
            factor = 1.0f;
        }
        if (options_.bias.data == nullptr) {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) s[i] *= factor;
        } else if (options_.bias_is_f32) {
            add_bias<float>(s, factor);
        } else {
            add_bias<typename Format<kType>::Element>(s, factor);
        }
        if (options_.mask.data != nullptr) hide(s);
        return exactly;
    }

   private:
    // i + off - j of the thread's first row and column.
    __device__ __forceinline__ int32_t distance() const { return row_ + work_.band.off - first_key_; }

    // Rows past the sequence's end, and keys that none of its queries sees: the softmax masks them.
    __device__ __forceinline__ bool has_strays() const {
        constexpr int32_t kLast = kScores - 1;
        const int32_t rows_left = work_.len_q - row_ - Fragment::row_offset(kLast),
                      keys_before = first_key_ + 1 - work_.seen.begin,
                      keys_left = work_.seen.end - first_key_ - Fragment::column_offset(kLast);
        // One comparison: as three, nvcc 13.0 spills 6 bytes (d 64, softcap and log-sum-exp).
        return min_i32(min_i32(rows_left, keys_left), keys_before) <= 0;
    }

    // The fma is spelled out: however the bias is read, the same values give the same bits.
    template <class T>
    __device__ __forceinline__ void add_bias(float (&s)[kScores], float factor) const {
        combine<T>(s, options_.bias, T{}, [factor](float score, float b) {
            return b == -INFINITY ? b : fmaf(score, factor, b);  // hides the key, whatever its score
        });
    }

    __device__ __forceinline__ void hide(float (&s)[kScores]) const {
        combine<uint8_t>(s, options_.mask, 1,
                         [](float score, float visible) { return visible == 0.0f ? -INFINITY : score; });
    }

    // With the elements of `matrix` for the warp's head; past the sequence's end there are none.
    template <class T, class Combine>
    __device__ __forceinline__ void combine(float (&s)[kScores], const ScoreMatrix& matrix, T neutral,
                                            Combine combine) const {
        const int32_t block = first_key_ - Fragment::first_column(ptx::lane_id());
        const T* elements = static_cast<const T*>(matrix.data) + work_.batch * matrix.batch_stride +
                            head_ * matrix.head_stride + row_ * matrix.row_stride + block * matrix.key_stride;
        ScoreElements<T, kScores>(elements, matrix, work_.len_q - row_, work_.band.len_k - block, ptx::lane_id())
            .apply(s, neutral, combine);
    }

    const ScoreOptions& options_;
    const Work& work_;
    const float slope_;
    const int32_t head_;
    const int32_t row_, first_key_;  // the thread's first row, of the sequence, and its first column
};

}  // namespace foveal::sm90
