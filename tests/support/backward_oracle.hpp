// The gradient written down as the contract states it (1.13), one row and one key at a time, from q, k, v, out, lse and
// dout: once in float64 (the oracle), once in the input's own precision (the reference that the tolerance measures by):
// in f32, p and ds rounded to the input's type for the products that they enter. Shares nothing with the library.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/case.hpp"
#include "tests/support/oracle.hpp"

namespace foveal_testing {

// A query's row and head, as floats that hold the inputs exactly.
struct BackwardRow {
    int64_t row = 0;
    std::vector<float> q, dout, out;
    float lse = 0, dlse = 0;
    RowOptions options;
};

// Of some keys that a row sees, in the arithmetic of Real: double is the oracle, float the reference.
template <class Real>
struct RowGradient {
    KeyInterval keys{0, 0};
    Real D = 0;
    std::vector<Real> p, dx, ds;  // of each of the keys; ds without the scale
    std::vector<Real> weights;    // p, or what dropout makes of it

    // -exp(sink - lse) * D
    Real dsink = 0;
    // -sum of dx * |i + off - j|
    Real dslope = 0;
};

// keys: all of which the row sees. order: of the reference, in which it adds the products of rows (sum_order.hpp); D's
// in another one than dout . v, and never as tensor cores do, for a sum over a row and the products of a tile are not
// summed alike; and about which number its exponentials are taken, as reference_row() says.
template <class Real>
void differentiate_row(const Case& c, int64_t len_q, const BackwardRow& row, const KeyValueHead& head, KeyInterval keys,
                       RowGradient<Real>& gradient, int order = 0);

// dq of the row, [d]: all keys that it sees are in the gradient. The reference's is rounded to the case's type.
void query_gradient(const Case& c, const KeyValueHead& head, const RowGradient<double>& gradient,
                    std::vector<double>& dq);
void query_gradient(const Case& c, const KeyValueHead& head, const RowGradient<float>& gradient,
                    std::vector<float>& dq);

// dk and dv of one key, sums over rows that are added one after the other.
template <class Real>
struct KeyGradient {
    std::vector<Real> dk, dv;
    bool seen = false;  // by any row

    explicit KeyGradient(const Case& c) : dk(static_cast<size_t>(c.head_dim)), dv(static_cast<size_t>(c.head_dim_v)) {}
    // The key is the n-th of the gradient's.
    void add(const Case& c, const BackwardRow& row, const RowGradient<Real>& gradient, size_t n);
    // Scaled and, the reference's, rounded.
    void finish(const Case& c);
};

}  // namespace foveal_testing
