// The orders in which a reference adds the products of a row: the error of few sums is chance, that of one order too.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>

namespace foveal_testing {

// Orders that round each sum, as a CPU and a GPU's cores do; those from kOrders on add as sm90's tensor cores do.
inline constexpr int kOrders = 4;
inline constexpr int kTensorCoreOrders = 12;

// The n terms, one after the other: forwards, backwards, or from some term on in steps that meet all of them.
class Terms {
   public:
    Terms(int order, int64_t n) : n_(n), at_(order == 1 ? n - 1 : order * n / 16) {
        constexpr std::array<int64_t, 5> kSteps = {1, 7, 11, 13, 17};
        if (n <= 1 || order == 0) return;
        step_ = order == 1 ? n - 1 : kSteps[static_cast<size_t>(order % 5)] % n;
        while (std::gcd(step_, n) != 1) ++step_;
    }
    int64_t next() {
        const int64_t term = at_;
        at_ += step_;
        if (at_ >= n_) at_ -= n_;
        return term;
    }

   private:
    int64_t n_, at_, step_ = 1;
};

inline float cut_off(double x) {
    const auto nearest = static_cast<float>(x);
    return std::abs(static_cast<double>(nearest)) > std::abs(x) ? std::nextafter(nearest, 0.0F) : nearest;
}

template <class Real>
bool cuts_off(int order) {
    return std::is_same_v<Real, float> && order >= kOrders;
}

// add(term, part) for all n terms, in that order: in the precision of the sum or, as tensor cores do it, in float64 for
// each 16 of them, after which finish() cuts off the sums.
template <class Add, class Finish>
void add_terms(int64_t n, int order, bool cuts_off, const Add& add, const Finish& finish) {
    constexpr int64_t kAtOnce = 16;
    Terms terms(order, n);
    for (int64_t i = 0; i < n; ++i) {
        add(terms.next(), cuts_off);
        if (cuts_off && (i % kAtOnce == kAtOnce - 1 || i + 1 == n)) finish();
    }
}

}  // namespace foveal_testing
