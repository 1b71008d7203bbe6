// Gradients against differences of the float64 forward oracle: what the formulas mean, shared by nothing with them.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/contract/backward_fixture.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/oracle_inputs.hpp"

namespace foveal_testing {
namespace {

class Differences : public BackwardTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, Differences, testing::Values(FOVEAL_BACKEND_CPU));

// All that a loss depends on, row-major as the gradients' values.
struct Inputs {
    std::vector<float> q, k, v, sinks, slopes, bias;
};

// The loss whose gradient is asked: sum of dout * out, and of dlse * lse.
class Loss {
   public:
    explicit Loss(BackwardData& data) : data_(data), c_(data.the_case().forward), dout_(data.dout.values()) {
        if (data.dlse) dlse_ = data.dlse->values();
        read();
    }

    const Inputs& inputs() const { return inputs_; }

    double operator()(const Inputs& x) const {
        double loss = 0;
        for (int64_t b = 0; b < c_.batch; ++b)
            for (int64_t h = 0; h < c_.heads_q; ++h) {
                const KeyValueHead head = head_of(x, b, h / c_.group());
                for (int64_t row = 0; row < c_.used_q(b); ++row) loss += of_row(x, head, b, h, row);
            }
        return loss;
    }

   private:
    void read() {
        const auto reserve = [](std::vector<float>& to, const Shape& shape) {
            to.assign(static_cast<size_t>(elements_of(shape)), 0.0f);
        };
        reserve(inputs_.q, data_.dq.shape());
        reserve(inputs_.k, data_.dk.shape());
        reserve(inputs_.v, data_.dv.shape());
        if (data_.dsinks) reserve(inputs_.sinks, data_.dsinks->shape());
        if (data_.dalibi) reserve(inputs_.slopes, data_.dalibi->shape());
        if (data_.dbias) reserve(inputs_.bias, data_.dbias->shape());
        CaseData& from = data_.forward();
        for (int64_t b = 0; b < c_.batch; ++b) {
            for (int64_t h = 0; h < c_.heads_q; ++h)
                for (int64_t row = 0; row < c_.used_q(b); ++row) {
                    from.read(TensorId::kQ, b, h, row, 1,
                              &inputs_.q[place(RowPlace::of_q(c_, c_.head_dim, b, h, row))]);
                    read_options_of(b, h, row);
                }
            for (int64_t h = 0; h < c_.heads_k; ++h)
                for (int64_t j = 0; j < c_.used_k(b); ++j) {
                    from.read(TensorId::kK, b, h, j, 1, &inputs_.k[place(RowPlace::of_k(c_, c_.head_dim, b, h, j))]);
                    from.read(TensorId::kV, b, h, j, 1, &inputs_.v[place(RowPlace::of_k(c_, c_.head_dim_v, b, h, j))]);
                }
        }
    }

    void read_options_of(int64_t b, int64_t h, int64_t row) {
        const RowOptions options = read_options(data_.forward(), b, {h, row});
        if (options.sink) inputs_.sinks[place(h)] = *options.sink;
        if (data_.dalibi) inputs_.slopes[slope_place(b, h)] = options.slope;
        for (size_t j = 0; j < options.bias.size(); ++j)
            inputs_.bias[bias_place(b, h, row, static_cast<int64_t>(j))] = options.bias[j];
    }

    static size_t place(int64_t at) { return static_cast<size_t>(at); }
    size_t slope_place(int64_t b, int64_t h) const {
        return place(c_.alibi == Alibi::kByHead ? h : b * c_.heads_q + h);
    }
    size_t bias_place(int64_t b, int64_t h, int64_t row, int64_t key) const {
        const ScoreMatrix& m = *c_.bias;
        int64_t at = m.by_sequence ? b : 0;
        at = at * (m.by_head ? c_.heads_q : 1) + (m.by_head ? h : 0);
        at = at * (m.by_query ? c_.rows_q : 1) + (m.by_query ? row : 0);
        return place(at * (m.by_key ? c_.rows_k : 1) + (m.by_key ? key : 0));
    }

    KeyValueHead head_of(const Inputs& x, int64_t b, int64_t h) const {
        KeyValueHead head;
        head.len_k = c_.used_k(b);
        head.k_transposed.resize(place(head.len_k * c_.head_dim));
        for (int64_t j = 0; j < head.len_k; ++j) {
            for (int64_t n = 0; n < c_.head_dim; ++n)
                head.k_transposed[place(n * head.len_k + j)] = x.k[place(RowPlace::of_k(c_, c_.head_dim, b, h, j) + n)];
            const auto row = x.v.begin() + RowPlace::of_k(c_, c_.head_dim_v, b, h, j);
            head.v.insert(head.v.end(), row, row + c_.head_dim_v);
        }
        return head;
    }

    double of_row(const Inputs& x, const KeyValueHead& head, int64_t b, int64_t h, int64_t row) const {
        RowOptions options = read_options(data_.forward(), b, {h, row});
        if (options.sink) options.sink = x.sinks[place(h)];
        if (data_.dalibi) options.slope = x.slopes[slope_place(b, h)];
        for (size_t j = 0; j < options.bias.size(); ++j)
            options.bias[j] = x.bias[bias_place(b, h, row, static_cast<int64_t>(j))];
        OracleRow result;
        oracle_row(c_, row, c_.used_q(b), x.q.data() + RowPlace::of_q(c_, c_.head_dim, b, h, row), head, options,
                   result);
        double loss = 0;
        for (int64_t n = 0; n < c_.head_dim_v; ++n)
            loss += result.out[place(n)] *
                    static_cast<double>(dout_[place(RowPlace::of_q(c_, c_.head_dim_v, b, h, row) + n)]);
        if (!dlse_.empty() && std::isfinite(result.lse))
            loss += result.lse * static_cast<double>(dlse_[place(RowPlace::of_lse(c_, b, h, row))]);
        return loss;
    }

    BackwardData& data_;
    const Case& c_;
    const std::vector<float> dout_;
    std::vector<float> dlse_;
    Inputs inputs_;
};

// Each element of one input: the central difference of two widths, whose own difference bounds its error. What f32
// rounds is small beside the largest gradient; how exact gradients are, the oracle judges.
void expect_differences(const Loss& loss, std::vector<float> Inputs::*input, const std::vector<float>& got,
                        const std::string& what) {
    constexpr double kRounding = 2e-5;
    double largest = 0;
    for (const float x : got) largest = std::max(largest, std::abs(static_cast<double>(x)));
    Inputs x = loss.inputs();
    const auto difference = [&](size_t i, float width) {
        const float at = (x.*input)[i];
        const float above = at + width, below = at - width;
        (x.*input)[i] = above;
        double change = loss(x);
        (x.*input)[i] = below;
        change -= loss(x);
        (x.*input)[i] = at;
        return change / (static_cast<double>(above) - static_cast<double>(below));
    };
    for (size_t i = 0; i < got.size(); ++i) {
        // -inf of a bias, and what keys hold that no row sees.
        const float value = (x.*input)[i];
        if (!std::isfinite(value) || value + 1 == value) {
            ASSERT_EQ(got[i], 0) << what << "[" << i << "]";
            continue;
        }
        const double wide = difference(i, 0x1p-6f), narrow = difference(i, 0x1p-7f);
        ASSERT_NEAR(static_cast<double>(got[i]), narrow, std::abs(wide - narrow) + kRounding * (1 + largest))
            << what << "[" << i << "]";
    }
}

TEST_P(Differences, OfEveryOption) {
    for (const std::string option : {"full",
                                     "causal dlse",
                                     "causal topleft",
                                     "left2 right1 dlse",
                                     "chunk3",
                                     "softcap2 dlse",
                                     "alibi",
                                     "alibi_b dlse",
                                     "sinks dlse",
                                     "sinks causal topleft dlse",
                                     "bias_f32=bh",
                                     "bias_f32=11 dlse",
                                     "bias_f32=b11k",
                                     "bias_f32=1hq1",
                                     "bias_f32=bh bias_inf",
                                     "mask=b1 dlse",
                                     "used_q=3,5 used_k=7,2",
                                     "qoff=2,-3 causal",
                                     "scale-0.7 dlse",
                                     "dropout0.4 dlse",
                                     "dropout0.2 softcap2 alibi sinks bias_f32=bh causal dlse",
                                     "softcap2 alibi sinks bias_f32=1h mask=bh causal dlse"}) {
        const std::string text = "b2 sq5 sk7 hq4 hk2 d8 dv3 f32 " + option;
        const auto data = run(text);
        const Loss loss(*data);
        const auto used = [](std::vector<float> values) {
            for (float& x : values) x = std::isnan(x) ? 0 : x;  // rows that take no part
            return values;
        };
        expect_differences(loss, &Inputs::q, used(data->dq.values()), text + ": dq");
        expect_differences(loss, &Inputs::k, used(data->dk.values()), text + ": dk");
        expect_differences(loss, &Inputs::v, used(data->dv.values()), text + ": dv");
        if (data->dsinks) expect_differences(loss, &Inputs::sinks, data->dsinks->values(), text + ": dsinks");
        if (data->dalibi) expect_differences(loss, &Inputs::slopes, data->dalibi->values(), text + ": dalibi_slopes");
        if (data->dbias) expect_differences(loss, &Inputs::bias, data->dbias->values(), text + ": dbias");
    }
    const auto packed = run("varlen qlens=4,0,3 klens=5,2,3 h2 d8 f32 causal dropout0.3 dlse");
    const Loss loss(*packed);
    expect_differences(loss, &Inputs::q, packed->dq.values(), "varlen: dq");
    expect_differences(loss, &Inputs::k, packed->dk.values(), "varlen: dk");
    expect_differences(loss, &Inputs::v, packed->dv.values(), "varlen: dv");
}

}  // namespace
}  // namespace foveal_testing
