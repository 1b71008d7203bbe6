#include "tests/support/number_formats.hpp"

#include <algorithm>
#include <limits>

namespace foveal_testing {
namespace {

struct Format {
    int fraction_bits;
    int min_exponent;  // of the smallest normal number
};

Format format_of(foveal_dtype dtype) {
    if (dtype == FOVEAL_BF16) return {7, -126};
    if (dtype == FOVEAL_F16) return {10, -14};
    return {23, -126};
}

}  // namespace

double largest_finite(foveal_dtype dtype) {
    if (dtype == FOVEAL_BF16) return 0x1.FEp127;
    if (dtype == FOVEAL_F16) return 65504;
    return static_cast<double>((std::numeric_limits<float>::max)());
}

double round_to(foveal_dtype dtype, double x) {
    if (x == 0 || !std::isfinite(x)) return x;
    const Format format = format_of(dtype);
    const int exponent = std::max(std::ilogb(x), format.min_exponent);
    const double unit = std::ldexp(1.0, exponent - format.fraction_bits);
    const double rounded = std::nearbyint(x / unit) * unit;
    return std::abs(rounded) <= largest_finite(dtype) ? rounded : std::copysign(HUGE_VAL, x);
}

}  // namespace foveal_testing
