// From q.k to P where scores have options (contract 1.2): softcap, ALiBi, bias, boolean mask, chunks, and scales of any
// sign. Scores are transposed: rows are keys, columns are queries. Scores are in natural units; a bias and a mask are
// read element by element.
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

// Of one thread, whose first key and query these are, at one step.
template <DType kType>
class BackwardScores {
    static constexpr int32_t kScores = Fragment::size(kBackwardQueries);

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
            float bias[8] = {}, probability[8];
            if (options_.mask.data != nullptr) hidden |= hidden_by_mask(k, hidden);
            if (options_.bias.data != nullptr) read_bias(k, hidden, bias);
#pragma unroll
            for (int32_t e = 0; e < 8; ++e) {
                const int32_t i = 8 * k + e;
                float derivative = 1;
                const float x = score(s[i], i, derivative) + bias[e] + neg_lse[Fragment::column_offset(i)];
                probability[e] = (hidden >> i & 1) != 0 ? 0.0F : ptx::ex2(x * static_cast<float>(kLog2E));
                s[i] = probability[e] * derivative;
            }
#pragma unroll
            for (int32_t e = 0; e < Fragment::kPairsOfOperand; ++e)
                p[k][e] = Format<kType>::pack(probability[2 * e], probability[2 * e + 1]);
            ptx::pin(p[k]);  // or what the others need would occupy registers at once
        }
    }

   private:
    // Without the bias.
    __device__ __forceinline__ float score(float qk, int32_t i, float& derivative) const {
        float x = qk * options_.scale;
        if (options_.softcap > 0) {
            const SoftcapValue capped = softcap_value(qk * options_.cap_argument);
            x = options_.softcap * capped.tanh;
            derivative = capped.derivative;
        }
        if (options_.alibi_slopes != nullptr) {
            const int32_t distance = first_distance_ + Fragment::column_offset(i) - Fragment::row_offset(i);
            x = fmaf(-slope_, fabsf(static_cast<float>(distance)), x);
        }
        return x;
    }

    // Calls use(e, value) for elements 8 k + e of a matrix that are not hidden.
    template <class T, class Use>
    __device__ __forceinline__ void read(const ScoreMatrix& matrix, int32_t k, uint32_t hidden, Use use) const {
        const T* at = static_cast<const T*>(matrix.data) + task_.sequence * matrix.batch_stride +
                      head_ * matrix.head_stride + (query_ + Fragment::column_offset(8 * k)) * matrix.row_stride +
                      int64_t{key_} * matrix.key_stride;
#pragma unroll
        for (int32_t e = 0; e < 8; ++e) {
            const T* element =
                at + Fragment::column_offset(e) * matrix.row_stride + Fragment::row_offset(e) * matrix.key_stride;
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
#pragma unroll
        for (int32_t c = 0; c < kBackwardQueries; c += Fragment::kColumns)
#pragma unroll
            for (int32_t e = 0; e < 2; ++e) {
                const int32_t query = query_ + c + e;
                const Range keys = query < task_.q.length ? visible_keys(task_.band, query) : Range{0, 0};
#pragma unroll
                for (int32_t r = 0; r < Fragment::kRows; ++r)
                    if (!keys.contains(key_ + r * Fragment::kRowDistance)) hidden |= 1u << Fragment::index(r, c + e);
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
