#include "tests/support/tolerance.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tests/support/number_formats.hpp"

namespace foveal_testing {
namespace {

constexpr double kMaxFactor = 2;     // contract 1.10
constexpr double kNormFactor = 1.2;  // contract 1.10
// Tensor cores round a sum over e4m3 to 13 bits below its largest part once every 32 channels: up to 8 times.
constexpr double kE4m3LseTolerance = 8 * 0x1p-13;
constexpr double kLseTolerance = 2e-5;  // contract 1.10
// The channels of a row share the rounding of its P, so the ratio of two norms has about as many degrees of freedom
// as there are rows: with fewer than this it says nothing that the maximum does not.
constexpr int64_t kMinRowsForNorm = 64;

bool same_class(double a, double b) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    if (std::isinf(a) || std::isinf(b)) return a == b;
    return true;
}

template <class... Values>
std::string format(const char* pattern, Values... values) {
    char text[512];
    std::snprintf(text, sizeof text, pattern, values...);
    return text;
}

std::string element_text(const Element& e) {
    return format("b %lld h %lld i %lld c %lld: got %.9g, oracle %.9g, reference %.9g",
                  static_cast<long long>(e.sequence), static_cast<long long>(e.head), static_cast<long long>(e.row),
                  static_cast<long long>(e.channel), e.got, e.oracle, e.reference);
}

}  // namespace

void ErrorStatistics::add_row(int64_t sequence, int64_t head, int64_t row, int64_t channels, const float* got,
                              const double* oracle, const float* reference) {
    ++rows;
    ++references;
    rows_rounded += !std::equal(oracle, oracle + channels, reference);
    for (int64_t c = 0; c < channels; ++c) {
        const double expected = round_to(dtype_, oracle[c]);
        const Element element{sequence, head, row, c, got[c], oracle[c], reference[c]};
        if (!same_class(got[c], expected)) {
            if (mismatched++ == 0) first_mismatch = element;
            continue;
        }
        if (!std::isfinite(expected)) continue;
        if (!std::isfinite(reference[c])) {
            ++reference_not_finite;
            continue;
        }
        const double error = std::abs(got[c] - oracle[c]);
        const double reference_error = std::abs(reference[c] - oracle[c]);
        if (error > max_error) {
            max_error = error;
            worst = element;
        }
        max_reference_error = std::max(max_reference_error, reference_error);
        max_rounding = std::max(max_rounding, std::abs(expected - oracle[c]));
        squared_error += error * error;
        squared_reference_error += reference_error * reference_error;
        squared_oracle += oracle[c] * oracle[c];
    }
}

void ErrorStatistics::add_reference(int64_t channels, const double* oracle, const float* reference) {
    for (int64_t c = 0; c < channels; ++c) {
        const double error = std::abs(reference[c] - oracle[c]);
        if (!std::isfinite(error)) continue;
        max_reference_error = std::max(max_reference_error, error);
        squared_reference_error += error * error;
    }
    ++references;
}

void ErrorStatistics::add_lse(int64_t sequence, int64_t head, int64_t row, double got, double oracle, bool e4m3_sums) {
    ++lse_rows;
    const double tolerance = e4m3_sums ? kE4m3LseTolerance : kLseTolerance;
    double excess = HUGE_VAL;
    if (same_class(got, oracle)) {
        excess = std::isfinite(oracle) ? std::abs(got - oracle) / (tolerance * (1 + std::abs(oracle))) : 0.0;
    }
    if (excess > lse_excess) {
        lse_excess = excess;
        lse_worst = {sequence, head, row, 0, got, oracle, oracle};
    }
}

void ErrorStatistics::merge(const ErrorStatistics& other) {
    if (other.max_error > max_error) worst = other.worst;
    if (mismatched == 0) first_mismatch = other.first_mismatch;
    if (other.lse_excess > lse_excess) lse_worst = other.lse_worst;
    rows += other.rows;
    references += other.references;
    rows_rounded += other.rows_rounded;
    max_error = std::max(max_error, other.max_error);
    max_reference_error = std::max(max_reference_error, other.max_reference_error);
    max_rounding = std::max(max_rounding, other.max_rounding);
    squared_error += other.squared_error;
    squared_reference_error += other.squared_reference_error;
    squared_oracle += other.squared_oracle;
    mismatched += other.mismatched;
    reference_not_finite += other.reference_not_finite;
    lse_rows += other.lse_rows;
    lse_excess = std::max(lse_excess, other.lse_excess);
}

std::string Verdict::summary() const {
    return format("rows %lld  max %.2e (ref %.2e)  norm %.2e (ref %.2e)  lse %.2f of its limit",
                  static_cast<long long>(rows_checked), max_error, max_reference_error, norm_error,
                  norm_reference_error, lse_excess);
}

Verdict judge(const ErrorStatistics& s) {
    Verdict verdict;
    verdict.rows_checked = s.rows;
    verdict.max_error = s.max_error;
    verdict.max_reference_error = s.max_reference_error;
    verdict.lse_excess = s.lse_excess;
    const double norm = s.squared_oracle > 0 ? std::sqrt(s.squared_oracle) : 1.0;
    verdict.norm_error = std::sqrt(s.squared_error) / norm;
    const double results = s.rows > 0 ? static_cast<double>(s.references) / static_cast<double>(s.rows) : 1.0;
    verdict.norm_reference_error = std::sqrt(s.squared_reference_error / results) / norm;

    const double limit = kMaxFactor * s.max_reference_error + s.max_rounding;
    if (s.mismatched > 0) {
        verdict.failure += format("%lld elements are inf or NaN where the oracle is not, or the reverse; first: ",
                                  static_cast<long long>(s.mismatched)) +
                           element_text(s.first_mismatch) + "\n";
    }
    if (s.reference_not_finite > 0) {
        verdict.failure += format("the case proves nothing: the reference overflows in %lld elements\n",
                                  static_cast<long long>(s.reference_not_finite));
    }
    if (s.max_error > limit) {
        verdict.failure +=
            format("max|out - oracle| = %.4g > %.4g = 2 * max|reference - oracle| + rounding; worst: ", s.max_error,
                   limit) +
            element_text(s.worst) + "\n";
    }
    if (s.rows_rounded >= kMinRowsForNorm && verdict.norm_error > kNormFactor * verdict.norm_reference_error) {
        verdict.failure +=
            format("|out - oracle|/|oracle| = %.4g > 1.2 * %.4g of the reference; worst: ", verdict.norm_error,
                   verdict.norm_reference_error) +
            element_text(s.worst) + "\n";
    }
    if (s.lse_excess > 1) {
        verdict.failure +=
            format("lse off by %.3g times its tolerance; worst: ", s.lse_excess) + element_text(s.lse_worst) + "\n";
    }
    verdict.pass = verdict.failure.empty();
    return verdict;
}

}  // namespace foveal_testing
