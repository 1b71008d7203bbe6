// From q.k to P where scores have options (contract 1.2): softcap, ALiBi, bias, boolean mask, chunks, and scales of any
// sign. Scores are transposed, so that rows are keys and columns are queries, but where dQ is computed apart. They are
// in natural units; a bias and a mask are read element by element.
#pragma once

#include <cstdint>

#include "sm90/backward/params.hpp"
#include "sm90/backward/schedule.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/scores/options.hpp"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// tanh(y) = sign(y) (1 - u), and its derivative u (2 - u), without cancellation. Near 0 a series: 1 - u would be off by
// 1e-7, of which a large softcap makes much.
struct SoftcapValue {
    float tanh, derivative;
};
__device__ __forceinline__ SoftcapValue softcap_value(float y) {
    constexpr float kLog2ETwice = 2.8853900817779268F, kSeriesEnd = 0.02F;
    const float size = fabsf(y);
    const float u = __fdividef(2.0F, 1.0F + ptx::ex2(size * kLog2ETwice));
    const float series = size * fmaf(size * size, -1.0F / 3, 1.0F);
    return {copysignf(size < kSeriesEnd ? series : 1.0F - u, y), u * (2.0F - u)};
}

// Of one thread, whose first key and query these are, at one step of kColumns columns. kOfKeys: rows are keys. kExact:
// as exact as fp32 is, for gradients that are not rounded to 16 bits.
template <DType kType, int32_t kColumns = kBackwardQueries, bool kOfKeys = true, bool kExact = false>
class BackwardScores {
    static constexpr int32_t kScores = Fragment::size(kColumns);

   public:
    __device__ __forceinline__ BackwardScores(const BackwardParams& params, const BackwardTask& task, int32_t head,
                                              int32_t key, int32_t query)
        : options_(params.options),
          task_(task),
          key_(key),
          query_(query),
          first_distance_(query + task.band.off - key),
          head_(head) {
        if (options_.alibi_slopes != nullptr) slope_ = finite_slope();
    }

    // s: from q.k to P times what a softcap's derivative is. p: P, rounded. neg_lse: of the thread's first query on.
    __device__ __forceinline__ void apply(float (&s)[kScores], uint32_t (&p)[kScores / 8][4],
                                          const float* neg_lse) const {
        uint32_t hidden = hidden_elements();
#pragma unroll
        for (int32_t k = 0; k < kScores / 8; ++k) {
            float probability[8];
            eight_probabilities(k, s, neg_lse, hidden, [&](int32_t e, float x, float derivative) {
                probability[e] = x;
                s[8 * k + e] = x * derivative;
            });
#pragma unroll
            for (int32_t e = 0; e < Fragment::kPairsOfOperand; ++e)
                p[k][e] = Format<kType>::pack(probability[2 * e], probability[2 * e + 1]);
            ptx::pin(p[k]);  // or what the others need would occupy registers at once
        }
    }

    // s: from q.k to P, and with kHasDerivative times what a softcap's derivative is. neg_lse: from the thread's first
    // query on; where rows are queries, of its rows.
    template <bool kHasDerivative>
    __device__ __forceinline__ void probabilities(float (&s)[kScores], const float* neg_lse) const {
        static_assert(!(kExact && kHasDerivative));
        uint32_t hidden = hidden_elements();
#pragma unroll
        for (int32_t k = 0; k < kScores / 8; ++k) {
            float eight[8];
            eight_probabilities(k, s, neg_lse, hidden, [&](int32_t e, float x, float derivative) {
                eight[e] = kHasDerivative ? x * derivative : x;
            });
            ptx::pin(eight);
#pragma unroll
            for (int32_t e = 0; e < 8; ++e) s[8 * k + e] = eight[e];
        }
    }

    // |i + off - j| of element i.
    __device__ __forceinline__ float distance(int32_t i) const {
        return fabsf(static_cast<float>(first_distance_ + query_offset(i) - key_offset(i)));
    }

   private:
    // Of element i, below the thread's first.
    static __device__ __forceinline__ constexpr int32_t key_offset(int32_t i) {
        return kOfKeys ? Fragment::row_offset(i) : Fragment::column_offset(i);
    }
    static __device__ __forceinline__ constexpr int32_t query_offset(int32_t i) {
        return kOfKeys ? Fragment::column_offset(i) : Fragment::row_offset(i);
    }

    // Calls use(e, probability, derivative) for elements 8 k + e.
    template <class Use>
    __device__ __forceinline__ void eight_probabilities(int32_t k, const float (&s)[kScores], const float* neg_lse,
                                                        uint32_t& hidden, Use use) const {
        float bias[8] = {};
        if (options_.mask.data != nullptr) hidden |= hidden_by_mask(k, hidden);
        if (options_.bias.data != nullptr) read_bias(k, hidden, bias);
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
            const int32_t i = 8 * k + e;
            float derivative = 1;
            const float x =
                score(s[i], i, derivative) + bias[e] + neg_lse[kOfKeys ? Fragment::column_offset(i) : Fragment::row(i)];
            const float probability = kExact ? expf(x) : ptx::ex2(x * static_cast<float>(kLog2E));
            use(e, (hidden >> i & 1) != 0 ? 0.0F : probability, derivative);
        }
    }

    // Without the bias.
    __device__ __forceinline__ float score(float qk, int32_t i, float& derivative) const {
        float x = qk * options_.scale;
        if (options_.softcap > 0) {
            const SoftcapValue capped =
                kExact ? SoftcapValue{tanhf(qk * options_.cap_argument), 1} : softcap_value(qk * options_.cap_argument);
            x = options_.softcap * capped.tanh;
            derivative = capped.derivative;
        }
        if (options_.alibi_slopes != nullptr) x = fmaf(-slope_, distance(i), x);
        return x;
    }

    // Calls use(e, value) for elements 8 k + e of a matrix that are not hidden.
    template <class T, class Use>
    __device__ __forceinline__ void read(const ScoreMatrix& matrix, int32_t k, uint32_t hidden, Use use) const {
        const T* at = static_cast<const T*>(matrix.data) + task_.sequence * matrix.batch_stride +
                      head_ * matrix.head_stride + (query_ + query_offset(8 * k)) * matrix.row_stride +
                      int64_t{key_ + key_offset(8 * k)} * matrix.key_stride;
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
            const T* element = at + query_offset(e) * matrix.row_stride + key_offset(e) * matrix.key_stride;
            if ((hidden >> (8 * k + e) & 1) == 0) use(e, *element);
        }
    }
    __device__ __forceinline__ void read_bias(int32_t k, uint32_t hidden, float (&bias)[8]) const {
        using Element = typename Format<kType>::Element;
        if (options_.bias_is_f32)
            read<float>(options_.bias, k, hidden, [&](int32_t e, float x) { bias[e] = x; });
        else
            read<Element>(options_.bias, k, hidden, [&](int32_t e, Element x) { bias[e] = Format<kType>::widen(x); });
    }
    __device__ __forceinline__ uint32_t hidden_by_mask(int32_t k, uint32_t hidden) const {
        uint32_t more = 0;
        read<uint8_t>(options_.mask, k, hidden, [&](int32_t e, uint8_t seen) { more |= (seen == 0) << (8 * k + e); });
        return more;
    }

    // Bit i: the query of element i does not see its key, or there is none.
    __device__ __forceinline__ uint32_t hidden_elements() const {
        uint32_t hidden = 0;
        const auto keys_of = [&](int32_t query) {
            return query < task_.q.length ? visible_keys(task_.band, query) : Range{0, 0};
        };
        if constexpr (kOfKeys) {
#pragma unroll
            for (int32_t c = 0; c < kColumns; c += Fragment::kColumns)
#pragma unroll
                for (int32_t e = 0; e < 2; ++e) {
                    const Range keys = keys_of(query_ + c + e);
#pragma unroll
                    for (int32_t r = 0; r < Fragment::kRows; ++r)
                        if (!keys.contains(key_ + r * Fragment::kRowDistance))
                            hidden |= 1u << Fragment::index(r, c + e);
                }
        } else {
#pragma unroll
            for (int32_t r = 0; r < Fragment::kRows; ++r) {
                const Range keys = keys_of(query_ + r * Fragment::kRowDistance);
#pragma unroll
                for (int32_t i = 0; i < kScores; ++i)
                    if (Fragment::row(i) == r && !keys.contains(key_ + key_offset(i))) hidden |= 1u << i;
            }
        }
        return hidden;
    }

    // As large as it may be: the distances' order is kept, and no product with one of them is infinite.
    __device__ __forceinline__ float finite_slope() const {
        const float slope =
            options_.alibi_slopes[task_.sequence * options_.alibi_batch_stride + head_ * options_.alibi_head_stride];
        const float most =
            __fdividef(0x1.fp127f, static_cast<float>(task_.q.length) + static_cast<float>(task_.k.length));
        return fabsf(slope) > most ? copysignf(most, slope) : slope;
    }

    const BackwardOptions& options_;
    const BackwardTask& task_;
    const int32_t key_, query_, first_distance_, head_;
    float slope_ = 0;
};

}  // namespace foveal::sm90
