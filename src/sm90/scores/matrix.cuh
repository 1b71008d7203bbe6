// What a bias or a boolean mask, [b|1, h_q|1, s_q|1, s_k|1], says of a thread's scores: two neighbouring columns of
// every eight, in two rows (tile/fragment.hpp).
//
// Read one by one, a line of the cache is asked for up to sixteen times, and that takes longer than both products
// (docs/performance-log, 61 and 65). So a lane reads a vector of neighbours at once, where that can be done, and
// lanes that share a row exchange what the others need (ScoreElements). A bias alone comes by way of shared memory,
// ahead of the scores (staged_bias.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "sm90/scores/matrix_vectors.hpp"
#include "sm90/scores/options.hpp"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// A vector is what a lane reads at once: an Octet<T> of 16-bit elements, or a Quartet of bytes. Either has
//   kSpan                 columns that the four lanes of a row read together
//   kPairs                of them a lane's pairs: one of every eight columns
//   first_column(lane)    of the lane's vector
//   fill(element), load(from)
//   exchange(lane)        among the four lanes
//   pair(p)               then: the lane's pair of the p-th eight columns

// Lane l reads columns 8 l to 8 l + 7.
template <class T>
class Octet {
   public:
    static constexpr int32_t kSpan = 32, kPairs = 4;
    static __device__ __forceinline__ int32_t first_column(int32_t lane) { return 8 * lane; }

    __device__ __forceinline__ void fill(T element) {
        const T both[2] = {element, element};
        for (uint32_t& pair : pairs_) pair = reinterpret_cast<const uint32_t&>(both);
    }
    __device__ __forceinline__ void load(const T* from) {
        const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
        pairs_[0] = x.x, pairs_[1] = x.y, pairs_[2] = x.z, pairs_[3] = x.w;
    }

    // Lane l of four gives its pair p to lane p, as that one's pair l.
    __device__ __forceinline__ void exchange(int32_t lane) {
        exchange<1>((lane & 1) != 0);
        exchange<2>((lane & 2) != 0);
    }

    __device__ __forceinline__ float2 pair(int32_t p) const {
        constexpr DType kType = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;
        return Format<kType>::unpack(pairs_[p]);
    }

   private:
    // With the lane whose number differs in kBit: pairs without that bit in their number for the other's with it.
    template <int32_t kBit>
    __device__ __forceinline__ void exchange(bool has_bit) {
#pragma unroll
        for (int32_t p = 0; p < 4; ++p) {
            if ((p & kBit) != 0) continue;
            uint32_t &low = pairs_[p], &high = pairs_[p | kBit];
            const uint32_t received = __shfl_xor_sync(~0u, has_bit ? low : high, kBit);
            low = has_bit ? received : low;
            high = has_bit ? high : received;
        }
    }

    uint32_t pairs_[4];
};

// Lanes 2 l and 2 l + 1 read the columns that both need of eight, the one of the first eight, the other of the second.
// (For 16 bits that is no faster than octets.)
class Quartet {
   public:
    static constexpr int32_t kSpan = 16, kPairs = 2;
    static __device__ __forceinline__ int32_t first_column(int32_t lane) { return lane % 2 * 8 + lane / 2 * 4; }

    __device__ __forceinline__ void fill(uint8_t element) { bytes_ = 0x01010101u * element; }
    __device__ __forceinline__ void load(const uint8_t* from) {
        bytes_ = __ldg(reinterpret_cast<const uint32_t*>(from));
    }

    __device__ __forceinline__ void exchange(int32_t lane) {
        const uint32_t received = __shfl_xor_sync(~0u, bytes_, 1);
        bytes_ = __byte_perm(bytes_, received, lane % 2 != 0 ? 0x3276 : 0x5410);
    }

    // 0, or 1 for any other number.
    __device__ __forceinline__ float2 pair(int32_t p) const { return {flag(2 * p), flag(2 * p + 1)}; }

   private:
    __device__ __forceinline__ float flag(int32_t byte) const {
        return (bytes_ & 0xFFu << 8 * byte) != 0 ? 1.0f : 0.0f;
    }

    uint32_t bytes_;
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
          is_shared_(matrix.key_stride == 0),
          in_vectors_(matrix.in_vectors),
          rows_(rows),
          columns_(columns),
          quarter_(lane % Fragment::kRowLanes) {}

    // s[i] = combine(s[i], its element); past the end, `neutral` in place of one.
    template <class Combine>
    __device__ __forceinline__ void apply(float (&s)[kScores], T neutral, Combine combine) const {
        if (is_shared_)
            apply_shared(s, neutral, combine);
        else if (!in_vectors_)
            apply_few<false>(s, neutral, combine);
        else if constexpr (sizeof(T) == 4)
            apply_few<true>(s, neutral, combine);
        else
            apply_vectors<std::conditional_t<sizeof(T) == 1, Quartet, Octet<T>>>(s, neutral, combine);
    }

   private:
    template <class Vector, class Combine>
    __device__ __forceinline__ void apply_vectors(float (&s)[kScores], T neutral, Combine combine) const {
        static_assert(Vector::kSpan == 4 * vector_elements(sizeof(T)), "what the host has checked");
        const int32_t first = Vector::first_column(quarter_);
#pragma unroll
        for (int32_t span = 0; span < 2 * kScores / Vector::kSpan; ++span)
#pragma unroll
            for (int32_t r = 0; r < Fragment::kRows; ++r) {
                const int32_t column = span * Vector::kSpan + first;
                Vector vector;
                vector.fill(neutral);
                if (Fragment::kRowDistance * r < rows_ && column < columns_)
                    vector.load(data_ + Fragment::kRowDistance * r * row_stride_ + column);
                vector.exchange(quarter_);
#pragma unroll
                for (int32_t p = 0; p < Vector::kPairs; ++p) {
                    const float2 elements = vector.pair(p);
                    float* score = &s[Fragment::index(r, span * Vector::kSpan + p * Fragment::kColumns)];
                    score[0] = combine(score[0], elements.x);
                    score[1] = combine(score[1], elements.y);
                }
            }
    }

    // One element for all keys of a row.
    template <class Combine>
    __device__ __forceinline__ void apply_shared(float (&s)[kScores], T neutral, Combine combine) const {
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            const T element =
                Fragment::kRowDistance * r < rows_ ? data_[Fragment::kRowDistance * r * row_stride_] : neutral;
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (Fragment::row(i) == r) s[i] = combine(s[i], static_cast<float>(element));
        }
    }

    // Of fp32 in pairs, which are vectors of their own, and of what is not in vectors. A branch for every 32 columns:
    // without it ptxas (13.0) has all loads under way at once, and spills 200 bytes.
    template <bool kPairs, class Combine>
    __device__ __forceinline__ void apply_few(float (&s)[kScores], T neutral, Combine combine) const {
        const int32_t first = Fragment::first_column(quarter_);
        const T *const row = data_ + first, *const next_row = row + Fragment::kRowDistance * row_stride_;
#pragma unroll
        for (int32_t span = 0; span < kScores / 16; ++span) {
            if (span * 32 >= columns_) break;
#pragma unroll
            for (int32_t i = span * 16; i < span * 16 + 16; i += 2) {
                const int32_t r = Fragment::row(i), column = Fragment::column_offset(i),
                              columns = columns_ - first - column;
                const T* from = (r == 0 ? row : next_row) + column;
                T pair[2] = {neutral, neutral};
                if constexpr (kPairs) {
                    if (Fragment::kRowDistance * r < rows_ && columns > 0) {
                        const float2 both = __ldg(reinterpret_cast<const float2*>(from));
                        pair[0] = both.x, pair[1] = both.y;
                    }
                } else {
                    if (Fragment::kRowDistance * r < rows_ && columns > 0) pair[0] = from[0];
                    if (Fragment::kRowDistance * r < rows_ && columns > 1) pair[1] = from[1];
                }
                s[i] = combine(s[i], static_cast<float>(pair[0]));
                s[i + 1] = combine(s[i + 1], static_cast<float>(pair[1]));
            }
        }
    }

    const T* data_;
    const int64_t row_stride_;
    const bool is_shared_, in_vectors_;
    const int32_t rows_, columns_, quarter_;
};

}  // namespace foveal::sm90
