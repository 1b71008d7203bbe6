// How far a row's scores may outgrow its reference (softmax.cuh) before the row is corrected: what an element type's
// exponents and precision allow.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

//   kShift            what an exponent is less than the distance from the reference
//   kSumLimit         where the threads sum: of a row's sum, or a block's
//   kFarSumLimit      the same of a row that is far
//   kLimitBits        where the product sums: of a P, as the bits of the 16-bit number
//   kLimitsWholeRow   the sum of the whole row is limited, not only that of each block
template <DType kType>
struct SoftmaxRange;

// bf16 has the exponents of fp32. A row may grow by 48 bits (33 nats) before it is corrected, its sum stays below 1, so
// that O is finite even where V is at the end of bf16's range, and the 70 bits between 2^-56 and 2^-126 hold every key
// that counts. (24: 1.13 of FA3's time in place of 0.92 at logits of standard deviation 10; docs/performance-log, 11.)
template <>
struct SoftmaxRange<DType::bf16> {
    static constexpr float kShift = 56.0f;
    static constexpr float kSumLimit = 0.125f, kFarSumLimit = 0x1p20f;
    static constexpr uint32_t kLimitBits = (127 - 8) << 7;
    static constexpr bool kLimitsWholeRow = true;
};

// f16 ends at 65504: the largest P starts at 1, as precise as f16 can be, and neither a P nor the sum of a block must
// pass 2^13. O cannot overflow fp32, so the sum of the whole row is free.
template <>
struct SoftmaxRange<DType::f16> {
    static constexpr float kShift = 0.0f;
    static constexpr float kSumLimit = 8192.0f, kFarSumLimit = kSumLimit;
    static constexpr uint32_t kLimitBits = (15 + 13) << 10;
    static constexpr bool kLimitsWholeRow = false;
};

}  // namespace foveal::sm90
