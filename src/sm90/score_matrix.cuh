// What a bias or a boolean mask, [b|1, h_q|1, s_q, s_k], says of a thread's scores, which are laid out as a wgmma
// accumulator (ptx/wgmma.cuh): two neighbouring columns of every eight, in two rows.
//
// Read one by one, a line of the cache is asked for up to sixteen times, and that takes longer than both products
// (docs/performance-log.md, 61). So where eight neighbours can be read at once, the four lanes that share a row read 32
// columns, eight each, and exchange them in pairs. Of fp32 every lane reads its own pairs, four of which are a sector
// of the cache.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "forward_params.hpp"

namespace foveal::sm90 {

// Eight neighbouring elements of at most 16 bits, as four pairs.
template <class T>
struct Octet {
    uint32_t pairs[4];

    __device__ __forceinline__ void load(const T* from) {
        if constexpr (sizeof(T) == 1) {
            const uint2 x = __ldg(reinterpret_cast<const uint2*>(from));
            pairs[0] = x.x & 0xFFFF, pairs[1] = x.x >> 16, pairs[2] = x.y & 0xFFFF, pairs[3] = x.y >> 16;
        } else {
            const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
            pairs[0] = x.x, pairs[1] = x.y, pairs[2] = x.z, pairs[3] = x.w;
        }
    }

    // Lane l of four gives its pair p to lane p, as that one's pair l.
    __device__ __forceinline__ void transpose(int32_t lane) {
        exchange<1>((lane & 1) != 0);
        exchange<2>((lane & 2) != 0);
    }

    __device__ __forceinline__ float2 pair(int32_t p) const {
        if constexpr (std::is_same_v<T, uint8_t>)
            return {static_cast<float>(pairs[p] & 0xFF), static_cast<float>(pairs[p] >> 8)};
        else if constexpr (std::is_same_v<T, __half>)
            return __half22float2(reinterpret_cast<const __half2&>(pairs[p]));
        else  // a bf16 is the upper half of an fp32
            return {__uint_as_float(pairs[p] << 16), __uint_as_float(pairs[p] & 0xFFFF0000u)};
    }

   private:
    // With the lane whose number differs in kBit: pairs without that bit in their number for the other's with it.
    template <int32_t kBit>
    __device__ __forceinline__ void exchange(bool has_bit) {
#pragma unroll
        for (int32_t p = 0; p < 4; ++p) {
            if ((p & kBit) != 0) continue;
            uint32_t &low = pairs[p], &high = pairs[p | kBit];
            const uint32_t received = __shfl_xor_sync(~0u, has_bit ? low : high, kBit);
            low = has_bit ? received : low;
            high = has_bit ? high : received;
        }
    }
};

// A thread's scores of a block, and the part of a matrix that belongs to the block.
template <class T, int32_t kScores>
class ScoreElements {
   public:
    // data: from the thread's first row and the block's first column on. rows, columns: that there are from there on.
    __device__ __forceinline__ ScoreElements(const T* data, const ScoreMatrix& matrix, int32_t rows, int32_t columns,
                                             int32_t lane)
        : data_(data),
          row_stride_(matrix.row_stride),
          in_octets_(matrix.in_octets),
          rows_(rows),
          columns_(columns),
          quarter_(lane % 4) {}

    // s[i] = combine(s[i], its element); past the end, `neutral` in place of one: 0 for types of 16 bits.
    template <class Combine>
    __device__ __forceinline__ void apply(float (&s)[kScores], T neutral, Combine combine) const {
        if (!in_octets_)
            apply_few<false>(s, neutral, combine);
        else if constexpr (sizeof(T) == 4)
            apply_few<true>(s, neutral, combine);
        else
            apply_octets(s, sizeof(T) == 1 ? 0x0101u * static_cast<uint8_t>(neutral) : 0, combine);
    }

   private:
    template <class Combine>
    __device__ __forceinline__ void apply_octets(float (&s)[kScores], uint32_t outside, Combine combine) const {
#pragma unroll
        for (int32_t span = 0; span < kScores / 16; ++span)
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) {
                const int32_t column = span * 32 + quarter_ * 8;
                Octet<T> octet{{outside, outside, outside, outside}};
                if (8 * r < rows_ && column < columns_) octet.load(data_ + 8 * r * row_stride_ + column);
                octet.transpose(quarter_);
#pragma unroll
                for (int32_t p = 0; p < 4; ++p) {
                    const float2 elements = octet.pair(p);
                    float* score = &s[(span * 4 + p) * 4 + 2 * r];
                    score[0] = combine(score[0], elements.x);
                    score[1] = combine(score[1], elements.y);
                }
            }
    }

    // Of fp32 and of what is not aligned. A branch for every 32 columns: without it ptxas (13.0) has all loads under
    // way at once, and spills 200 bytes.
    template <bool kPairs, class Combine>
    __device__ __forceinline__ void apply_few(float (&s)[kScores], T neutral, Combine combine) const {
        const int32_t first = quarter_ * 2;
        const T *const row = data_ + first, *const next_row = row + 8 * row_stride_;
#pragma unroll
        for (int32_t span = 0; span < kScores / 16; ++span) {
            if (span * 32 >= columns_) break;
#pragma unroll
            for (int32_t i = span * 16; i < span * 16 + 16; i += 2) {
                const int32_t r = i >> 1 & 1, column = (i >> 2) * 8, columns = columns_ - first - column;
                const T* from = (r == 0 ? row : next_row) + column;
                T pair[2] = {neutral, neutral};
                if constexpr (kPairs) {
                    if (8 * r < rows_ && columns > 0) {
                        const float2 both = __ldg(reinterpret_cast<const float2*>(from));
                        pair[0] = both.x, pair[1] = both.y;
                    }
                } else {
                    if (8 * r < rows_ && columns > 0) pair[0] = from[0];
                    if (8 * r < rows_ && columns > 1) pair[1] = from[1];
                }
                s[i] = combine(s[i], static_cast<float>(pair[0]));
                s[i + 1] = combine(s[i + 1], static_cast<float>(pair[1]));
            }
        }
    }

    const T* data_;
    const int64_t row_stride_;
    const bool in_octets_;
    const int32_t rows_, columns_, quarter_;
};

}  // namespace foveal::sm90
