// What the tests of the CPU backend share: checks and runs of a case, and rows of its result.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/check.hpp"

namespace foveal_testing {

inline constexpr foveal_backend kCpu = FOVEAL_BACKEND_CPU;

inline void expect_right(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kCpu);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
}

inline std::unique_ptr<CaseData> on_cpu(const std::string& text) { return make_case_data(parse_case(text), kCpu); }

inline std::unique_ptr<CaseData> run(const std::string& text) {
    auto data = on_cpu(text);
    EXPECT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << text << ": " << foveal_last_error();
    return data;
}

inline std::vector<float> rows_of(CaseData& data, TensorId id, int64_t sequence, int64_t head) {
    const Case& c = data.the_case();
    const int64_t channels = id == TensorId::kLse ? 1 : c.head_dim_v;
    std::vector<float> rows(static_cast<size_t>(c.used_q(sequence) * channels));
    data.read(id, sequence, head, 0, c.used_q(sequence), rows.data());
    return rows;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Rows [first, last) of a sequence of a dense f32 tensor, all heads.
inline void overwrite_rows(const foveal_tensor& tensor, int64_t sequence, int64_t first, int64_t last, float value) {
    ASSERT_EQ(tensor.dtype, FOVEAL_F32);
    for (int64_t row = first; row < last; ++row) {
        for (int64_t head = 0; head < tensor.shape[2]; ++head) {
            float* at = static_cast<float*>(tensor.data) + sequence * tensor.stride[0] + row * tensor.stride[1] +
                        head * tensor.stride[2];
            std::fill(at, at + tensor.shape[3], value);
        }
    }
}

// Rows that see no key: out = 0, and lse as given.
inline void expect_empty_rows(CaseData& data, int64_t sequence, int64_t first, int64_t last, float lse = -HUGE_VALF) {
    const Case& c = data.the_case();
    for (int64_t head = 0; head < c.heads_q; ++head) {
        const std::vector<float> out = rows_of(data, TensorId::kOut, sequence, head);
        const std::vector<float> lses = rows_of(data, TensorId::kLse, sequence, head);
        for (int64_t i = first; i < last; ++i) {
            ASSERT_EQ(lses[static_cast<size_t>(i)], lse) << "row " << i;
            for (int64_t n = 0; n < c.head_dim_v; ++n)
                ASSERT_EQ(out[static_cast<size_t>(i * c.head_dim_v + n)], 0.0f) << "row " << i;
        }
    }
}

}  // namespace foveal_testing
