// Order statistics of timing samples.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace foveal_tool {

// fraction 0.5 is the median; between two samples it interpolates. samples must not be empty.
inline double quantile(std::vector<double> samples, double fraction) {
    std::sort(samples.begin(), samples.end());
    const double position = fraction * static_cast<double>(samples.size() - 1);
    const auto below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, samples.size() - 1);
    return std::lerp(samples[below], samples[above], position - static_cast<double>(below));
}

inline double median(const std::vector<double>& samples) { return quantile(samples, 0.5); }

// The middle 80 % of the samples span this many per cent of their median.
inline double spread_pct(const std::vector<double>& samples) {
    return 100 * (quantile(samples, 0.9) - quantile(samples, 0.1)) / median(samples);
}

}  // namespace foveal_tool
