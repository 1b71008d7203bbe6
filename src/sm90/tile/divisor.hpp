// Division of a non-negative number by one that the host knows: a multiplication and a shift. Host and device share it.
#pragma once

#include <bit>
#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal::sm90 {

// Divides numbers of [0, 2^31) by one that is known before the kernel runs. For 2^(l-1) < d <= 2^l, m = ceil(2^(31+l) /
// d) is below 2^32, and m * d exceeds 2^(31+l) by less than 2^l; so floor(n * m / 2^(31+l)) = floor(n / d) for n <
// 2^31. (Granlund and Montgomery, Division by invariant integers using multiplication, 1994, theorem 4.2.)
class Divisor {
   public:
    Divisor() = default;
    explicit Divisor(int32_t value) : value_(value) {
        if (value == 1) return;
        const auto log2 = static_cast<uint32_t>(std::bit_width(static_cast<uint32_t>(value - 1)));
        multiplier_ = static_cast<uint32_t>(((uint64_t{1} << (31 + log2)) + static_cast<uint32_t>(value) - 1) /
                                            static_cast<uint32_t>(value));
        shift_ = log2 - 1;
    }

    FOVEAL_HOST_DEVICE int32_t value() const { return value_; }

    FOVEAL_HOST_DEVICE friend int32_t operator/(int32_t n, const Divisor& d) {
        const auto high = static_cast<uint32_t>(uint64_t{static_cast<uint32_t>(n)} * d.multiplier_ >> 32);
        return d.value_ == 1 ? n : static_cast<int32_t>(high >> d.shift_);
    }

   private:
    int32_t value_ = 1;
    uint32_t multiplier_ = 0, shift_ = 0;
};

}  // namespace foveal::sm90
