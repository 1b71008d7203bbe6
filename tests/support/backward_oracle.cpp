#include "tests/support/backward_oracle.hpp"

#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "tests/support/dropout_oracle.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/sum_order.hpp"

namespace foveal_testing {
namespace {

template <class Real>
Real dot(const std::vector<float>& a, const float* b, int order, bool cuts_off) {
    Real sum = 0;
    double part = 0;
    const auto add = [&](int64_t i, bool to_part) {
        const float x = a[static_cast<size_t>(i)], y = b[i];
        if (to_part)
            part += static_cast<double>(x) * static_cast<double>(y);
        else
            sum += static_cast<Real>(x) * static_cast<Real>(y);
    };
    add_terms(static_cast<int64_t>(a.size()), order, cuts_off, add, [&] { part = sum = cut_off(part); });
    return sum;
}

// As an operand of a product has it.
double rounded(const Case&, double x) { return x; }
float rounded(const Case& c, float x) { return round_to(c.dtype, x); }

template <class Real>
void query_gradient_of(const Case& c, const KeyValueHead& head, const RowGradient<Real>& gradient,
                       std::vector<Real>& dq) {
    dq.assign(static_cast<size_t>(c.head_dim), Real{0});
    for (size_t n = 0; n < gradient.ds.size(); ++n) {
        const Real ds = rounded(c, gradient.ds[n]);
        if (gradient.p[n] == 0) continue;
        const float* k = head.k_transposed.data() + gradient.keys.first + static_cast<int64_t>(n);
        for (size_t i = 0; i < dq.size(); ++i) dq[i] += ds * static_cast<Real>(k[static_cast<int64_t>(i) * head.len_k]);
    }
    for (Real& value : dq) value = rounded(c, value * static_cast<Real>(c.effective_scale()));
}

int64_t position_of(const Case& c, int64_t len_q, int64_t len_k, const BackwardRow& row) {
    if (row.options.query_offset) return row.row + *row.options.query_offset;
    return row.row + (c.top_left ? 0 : len_k - len_q);
}

}  // namespace

template <class Real>
void differentiate_row(const Case& c, int64_t len_q, const BackwardRow& row, const KeyValueHead& head, KeyInterval keys,
                       RowGradient<Real>& gradient, int order) {
    thread_local std::vector<Real> tanh;
    std::vector<Real>& p = gradient.p;
    scores_of_row(c, row.row, len_q, row.q.data(), head, row.options, keys, p, tanh, order);
    gradient.keys = keys;
    gradient.D = dot<Real>(row.dout, row.out.data(), order + 1, false) - static_cast<Real>(row.dlse);
    gradient.dx.assign(p.size(), Real{0});
    gradient.dslope = 0;
    const bool empty = row.lse == -HUGE_VALF;
    const auto above = std::is_same_v<Real, float> ? static_cast<Real>(order % kOrders) * Real{0.2F} : Real{0};
    const auto weight = [&](Real x) { return std::exp(x - (static_cast<Real>(row.lse) + above)) * std::exp(above); };
    const int64_t position = position_of(c, len_q, head.len_k, row);
    const auto dropout = static_cast<Real>(dropout_factor(c.dropout));
    gradient.weights.assign(p.size(), Real{0});
    for (size_t n = 0; n < p.size(); ++n) {
        p[n] = empty ? 0 : weight(p[n]);
        if (p[n] == 0) continue;
        const int64_t key = keys.first + static_cast<int64_t>(n);
        const std::vector<float>& kept = row.options.kept;
        const Real factor = kept.empty() ? Real{1} : kept[static_cast<size_t>(key)] != 0 ? dropout : Real{0};
        gradient.weights[n] = factor * p[n];
        const Real dp = factor * dot<Real>(row.dout, head.v.data() + key * c.head_dim_v, order, cuts_off<Real>(order));
        gradient.dx[n] = p[n] * (dp - gradient.D);
        gradient.dslope -= gradient.dx[n] * static_cast<Real>(std::abs(position - key));
    }
    gradient.ds = gradient.dx;
    if (c.softcap > 0) {
        for (size_t n = 0; n < p.size(); ++n) gradient.ds[n] *= 1 - tanh[n] * tanh[n];
    }
    gradient.dsink = 0;
    if (row.options.sink && !empty) gradient.dsink = -weight(static_cast<Real>(*row.options.sink)) * gradient.D;
}

template void differentiate_row(const Case&, int64_t, const BackwardRow&, const KeyValueHead&, KeyInterval,
                                RowGradient<double>&, int);
template void differentiate_row(const Case&, int64_t, const BackwardRow&, const KeyValueHead&, KeyInterval,
                                RowGradient<float>&, int);

void query_gradient(const Case& c, const KeyValueHead& head, const RowGradient<double>& gradient,
                    std::vector<double>& dq) {
    query_gradient_of(c, head, gradient, dq);
}

void query_gradient(const Case& c, const KeyValueHead& head, const RowGradient<float>& gradient,
                    std::vector<float>& dq) {
    query_gradient_of(c, head, gradient, dq);
}

template <class Real>
void KeyGradient<Real>::add(const Case& c, const BackwardRow& row, const RowGradient<Real>& gradient, size_t n) {
    seen = true;
    if (gradient.p[n] == 0) return;
    const Real p = rounded(c, gradient.weights[n]), ds = rounded(c, gradient.ds[n]);
    for (size_t i = 0; i < dk.size(); ++i) dk[i] += ds * static_cast<Real>(row.q[i]);
    for (size_t i = 0; i < dv.size(); ++i) dv[i] += p * static_cast<Real>(row.dout[i]);
}

template <class Real>
void KeyGradient<Real>::finish(const Case& c) {
    for (Real& value : dk) value = rounded(c, value * static_cast<Real>(c.effective_scale()));
    for (Real& value : dv) value = rounded(c, value);
}

template struct KeyGradient<double>;
template struct KeyGradient<float>;

}  // namespace foveal_testing
