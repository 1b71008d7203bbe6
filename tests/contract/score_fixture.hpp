// What the tests of the scores' options share: each runs on both backends. A case says what q, k and v are; the values
// of the options come from the test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {

class ScoreOption : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (GetParam() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    foveal_backend backend() const { return GetParam(); }
    bool on_gpu() const { return backend() == FOVEAL_BACKEND_SM90; }
    std::unique_ptr<CaseData> data_of(const std::string& text) const {
        return make_case_data(parse_case(text), backend());
    }
    // Element types of q that the backend has.
    std::vector<std::string> types() const {
        return on_gpu() ? std::vector<std::string>{" bf16", " f16"} : std::vector<std::string>{" bf16", " f16", " f32"};
    }
};

struct ScoreValues {
    std::function<float(int64_t query, int64_t key)> bias = {};  // of every sequence and head; none: no bias
    foveal_dtype bias_dtype = FOVEAL_F32;
    std::vector<float> slopes = {};  // [h_q], or none
    std::vector<float> sinks = {};   // [h_q], or none
};

// A call of a case with such values.
class ScoreCall {
   public:
    ScoreCall(std::unique_ptr<CaseData> data, foveal_backend backend, const ScoreValues& values)
        : data_(std::move(data)), args_(data_->args()) {
        const Case& c = data_->the_case();
        if (values.bias) {
            bias_.emplace(backend, values.bias_dtype, Shape{1, 1, c.rows_q, c.rows_k});
            std::vector<float> all;
            for (int64_t i = 0; i < c.rows_q; ++i)
                for (int64_t j = 0; j < c.rows_k; ++j) all.push_back(values.bias(i, j));
            bias_->set(all);
            args_.bias = bias_->view();
        }
        set(args_.alibi_slopes, slopes_, backend, values.slopes);
        set(args_.sinks, sinks_, backend, values.sinks);
    }

    const foveal_forward_args& args() const { return args_; }
    CaseData& data() { return *data_; }

    // Against the oracle, every row.
    Verdict judge_all() {
        const Case& c = data_->the_case();
        data_->synchronize();
        ErrorStatistics statistics(c.dtype);
        const std::vector<float> bias = bias_ ? bias_->values() : std::vector<float>{};
        for (int64_t sequence = 0; sequence < c.batch; ++sequence)
            for (int64_t head = 0; head < c.heads_q; ++head) judge_head(sequence, head, bias, statistics);
        return judge(statistics);
    }

   private:
    static void set(foveal_tensor& argument, std::optional<StridedTensor>& tensor, foveal_backend backend,
                    const std::vector<float>& values) {
        if (values.empty()) return;
        tensor.emplace(backend, FOVEAL_F32, Shape{static_cast<int64_t>(values.size())});
        tensor->set(values);
        argument = tensor->view();
    }

    void judge_head(int64_t sequence, int64_t head, const std::vector<float>& bias, ErrorStatistics& statistics) {
        const Case& c = data_->the_case();
        const int64_t head_k = head / c.group();
        KeyValueHead keys{c.rows_k, {}, std::vector<float>(static_cast<size_t>(c.rows_k * c.head_dim_v))};
        std::vector<float> k(static_cast<size_t>(c.rows_k * c.head_dim)), q(static_cast<size_t>(c.head_dim)),
            out(static_cast<size_t>(c.head_dim_v));
        data_->read(TensorId::kK, sequence, head_k, 0, c.rows_k, k.data());
        data_->read(TensorId::kV, sequence, head_k, 0, c.rows_k, keys.v.data());
        keys.k_transposed.resize(k.size());
        for (int64_t j = 0; j < c.rows_k; ++j)
            for (int64_t i = 0; i < c.head_dim; ++i)
                keys.k_transposed[static_cast<size_t>(i * c.rows_k + j)] = k[static_cast<size_t>(j * c.head_dim + i)];
        RowOptions options;
        if (slopes_) options.slope = slopes_->values()[static_cast<size_t>(head)];
        if (sinks_) options.sink = sinks_->values()[static_cast<size_t>(head)];
        OracleRow oracle;
        ReferenceRow reference;
        for (int64_t i = 0; i < c.rows_q; ++i) {
            if (!bias.empty()) options.bias.assign(bias.begin() + i * c.rows_k, bias.begin() + (i + 1) * c.rows_k);
            data_->read(TensorId::kQ, sequence, head, i, 1, q.data());
            data_->read(TensorId::kOut, sequence, head, i, 1, out.data());
            oracle_row(c, i, c.rows_q, q.data(), keys, options, oracle);
            reference_row(c, i, c.rows_q, q.data(), keys, options, reference);
            statistics.add_row(sequence, head, i, c.head_dim_v, out.data(), oracle.out.data(), reference.out.data());
            if (!c.lse) continue;
            float lse = 0;
            data_->read(TensorId::kLse, sequence, head, i, 1, &lse);
            statistics.add_lse(sequence, head, i, lse, oracle.lse);
        }
    }

    std::unique_ptr<CaseData> data_;
    foveal_forward_args args_;
    std::optional<StridedTensor> bias_, slopes_, sinks_;
};

inline void expect_right(std::unique_ptr<CaseData> data, foveal_backend backend, const ScoreValues& values) {
    const std::string text = to_text(data->the_case());
    ScoreCall call(std::move(data), backend, values);
    ASSERT_EQ(foveal_forward(&call.args(), nullptr), FOVEAL_OK) << text << ": " << foveal_last_error();
    const Verdict verdict = call.judge_all();
    EXPECT_TRUE(verdict.pass) << backend_name(backend) << " \"" << text << "\"\n" << verdict.failure;
}

}  // namespace foveal_testing
