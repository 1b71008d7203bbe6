// Rows without keys, the log-sum-exp, and what never reaches a result (contract 1.4 to 1.6), on the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/cpu/fixture.hpp"
#include "tests/support/oracle.hpp"

namespace foveal_testing {
namespace {

// ---- 1.4 Empty

TEST(Contract_1_4, RowsThatSeeNoKeyAreExactlyZero) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        expect_empty_rows(*run("b2 sq300 sk7 hq4 hk2 d24 causal lse " + type), 1, 0, 293);
        expect_empty_rows(*run("b2 sq70 sk0 hq4 hk2 d24 lse " + type), 1, 0, 70);
        expect_empty_rows(*run("varlen qlens=3,5 klens=9,0 hq4 hk2 d24 lse " + type), 1, 0, 5);
        expect_empty_rows(*run("b2 sq5 sk9 hq4 hk2 d24 lse used_k=0,9 " + type), 0, 0, 5);
    }
}

TEST(Contract_1_4, AnyMixOfZeroLengths) {
    for (const std::string shape :
         {"b0 s5", "b3 sq0 sk5", "b3 sq5 sk0", "b3 s0", "varlen qlens= klens=", "varlen qlens=0,0 klens=0,0",
          "varlen qlens=0,0 klens=3,0", "varlen qlens=3,0 klens=0,0", "varlen qlens=0,3,0,1 klens=1,0,0,4"}) {
        for (const std::string mask : {"full", "causal", "causal topleft"})
            expect_right(shape + " hq4 hk2 d24 f32 lse " + mask);
    }
}

// ---- 1.5 Log-sum-exp

TEST(Contract_1_5, IsOptionalAndChangesNothing) {
    for (const std::string text :
         {"b2 s100 hq4 hk2 d24 f32 causal", "varlen qlens=9,70 klens=100,3 hq4 hk2 d24 bf16 causal"}) {
        EXPECT_EQ(run(text)->bytes(TensorId::kOut), run(text + " lse")->bytes(TensorId::kOut)) << text;
    }
}

TEST(Contract_1_5, IsTheNaturalLogarithm) {
    const auto data = run("sq3 sk50 h1 d8 f32 scale0 lse");
    for (const float lse : rows_of(*data, TensorId::kLse, 0, 0)) EXPECT_NEAR(lse, std::log(50.0f), 1e-6f);
}

// ---- 1.6 Isolation

TEST(Contract_1_6, WhatLiesPastTheUsedLengthsNeverMatters) {
    const std::string text = "b3 sq70 sk200 hq4 hk2 d24 f32 lse causal used_q=70,1,33 used_k=129,0,200";
    const auto with_nan = run(text);  // unused rows hold NaN
    for (const float garbage : {0.0f, HUGE_VALF, -3e38f}) {
        const auto data = make_case_data(parse_case(text), kCpu);
        for (int64_t n = 0; n < 3; ++n) {
            overwrite_rows(data->args().q, n, data->the_case().used_q(n), 70, garbage);
            overwrite_rows(data->args().k, n, data->the_case().used_k(n), 200, garbage);
            overwrite_rows(data->args().v, n, data->the_case().used_k(n), 200, garbage);
        }
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        EXPECT_EQ(data->bytes(TensorId::kOut), with_nan->bytes(TensorId::kOut)) << garbage;
        EXPECT_EQ(data->bytes(TensorId::kLse), with_nan->bytes(TensorId::kLse)) << garbage;
    }
}

TEST(Contract_1_6, NeighboursOfAVarlenSequenceNeverMatter) {
    const std::string text = "varlen qlens=33,40,9 klens=65,70,130 hq4 hk2 d24 f32 lse causal";
    const auto clean = run(text);
    const auto data = make_case_data(parse_case(text), kCpu);
    for (const foveal_tensor* tensor : {&data->args().q, &data->args().k, &data->args().v}) {
        const bool of_q = tensor == &data->args().q;
        const int64_t first = of_q ? 33 : 65, last = of_q ? 73 : 135;  // the sequence in the middle
        float* values = static_cast<float*>(tensor->data);
        std::fill(values, values + first * tensor->stride[0], NAN);
        std::fill(values + last * tensor->stride[0], values + tensor->shape[0] * tensor->stride[0], NAN);
    }
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    for (int64_t head = 0; head < 4; ++head) {
        EXPECT_TRUE(same_bits(rows_of(*data, TensorId::kOut, 1, head), rows_of(*clean, TensorId::kOut, 1, head)));
        EXPECT_TRUE(same_bits(rows_of(*data, TensorId::kLse, 1, head), rows_of(*clean, TensorId::kLse, 1, head)));
        EXPECT_TRUE(std::isnan(rows_of(*data, TensorId::kOut, 0, head)[0])) << "what lies inside propagates";
    }
}

// The tail of a static cache, and what a window or a chunk leaves out before and after. (The suites fill such keys with
// NaN and infinities in every form and type.)
TEST(Contract_1_6, KeysThatNoRowSeesNeverMatter) {
    for (const std::string mask :
         {"sq70 causal topleft", "sq70 left33 causal", "sq70 chunk100 causal", "sq70 left20 right30 topleft",
          "sq3 causal topleft", "sq3 left33 causal", "sq3 chunk100 causal", "sq9 left20 right30 topleft"}) {
        for (const std::string option : {"", " softcap30", " alibi sinks", " bias=bh", " mask=bh"}) {
            const std::string text = "b2 sk330 hq4 hk2 d24 f32 lse " + mask + option;
            const auto data = make_case_data(parse_case(text), kCpu);
            std::vector<std::byte> out, lse;
            for (const float garbage : {0.0f, NAN, HUGE_VALF, -3e38f}) {
                for (int64_t n = 0; n < 2; ++n) {
                    const KeyInterval seen = keys_seen_by_any(data->the_case(), n);
                    for (const foveal_tensor* tensor : {&data->args().k, &data->args().v}) {
                        overwrite_rows(*tensor, n, 0, seen.first, garbage);
                        overwrite_rows(*tensor, n, seen.last, 330, garbage);
                    }
                }
                ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
                if (garbage == 0) out = data->bytes(TensorId::kOut), lse = data->bytes(TensorId::kLse);
                EXPECT_EQ(data->bytes(TensorId::kOut), out) << text << " " << garbage;
                EXPECT_EQ(data->bytes(TensorId::kLse), lse) << text << " " << garbage;
            }
        }
    }
}

TEST(Contract_1_6, NaNInsideReachesTheRowsThatSeeIt) {
    const std::string text = "b1 s100 h1 d24 f32 lse causal";
    const auto clean = run(text);
    const auto data = make_case_data(parse_case(text), kCpu);
    overwrite_rows(data->args().q, 0, 10, 11, NAN);
    overwrite_rows(data->args().k, 0, 70, 71, NAN);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    const std::vector<float> got = rows_of(*data, TensorId::kOut, 0, 0),
                             expected = rows_of(*clean, TensorId::kOut, 0, 0);
    const std::vector<float> lse = rows_of(*data, TensorId::kLse, 0, 0);
    for (size_t i = 0; i < 100; ++i) {
        const bool sees_nan = i == 10 || i >= 70;
        EXPECT_EQ(std::isnan(lse[i]), sees_nan) << i;
        for (size_t n = 0; n < 24; ++n) {
            EXPECT_EQ(std::isnan(got[i * 24 + n]), sees_nan) << i;
            EXPECT_TRUE(sees_nan || got[i * 24 + n] == expected[i * 24 + n]) << i;
        }
    }
}

// In tiles, and in parts of the keys of few rows.
TEST(Contract_1_6, NaNInVReachesNoRowThatDoesNotSeeIt) {
    for (const int64_t rows : {2, 4, 12, 70}) {
        const std::string text = "b1 sq" + std::to_string(rows) + " sk700 h1 d24 f32 lse causal";
        const auto clean = run(text);
        const auto data = make_case_data(parse_case(text), kCpu);
        const int64_t key = 700 - rows / 2 - 1;  // seen by row i if 700 - rows + i >= key
        overwrite_rows(data->args().v, 0, key, key + 1, NAN);
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        const std::vector<float> got = rows_of(*data, TensorId::kOut, 0, 0),
                                 expected = rows_of(*clean, TensorId::kOut, 0, 0);
        for (size_t i = 0; i < got.size(); ++i) {
            const bool sees_nan = static_cast<int64_t>(i / 24) >= rows - rows / 2 - 1;
            EXPECT_EQ(std::isnan(got[i]), sees_nan) << text << ", row " << i / 24;
            EXPECT_TRUE(sees_nan || got[i] == expected[i]) << text << ", row " << i / 24;
        }
    }
}

TEST(Contract_1_6, NaNInVReachesItsChannelAlone) {
    const auto data = make_case_data(parse_case("b1 s100 h1 d24 f32 full"), kCpu);
    static_cast<float*>(data->args().v.data)[37 * data->args().v.stride[1] + 5] = NAN;
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    const std::vector<float> got = rows_of(*data, TensorId::kOut, 0, 0);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i % 24 == 5) << i;
}

TEST(Contract_1_6, ScoresOfMinusInfinityHaveNoWeight) {
    const auto data = make_case_data(parse_case("b1 sq2 sk90 h1 d8 f32 full lse"), kCpu);
    overwrite_rows(data->args().q, 0, 0, 2, 1.0f);
    overwrite_rows(data->args().k, 0, 0, 89, -HUGE_VALF);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    std::vector<float> v(8);
    data->read(TensorId::kV, 0, 0, 89, 1, v.data());
    const std::vector<float> out = rows_of(*data, TensorId::kOut, 0, 0);
    for (size_t n = 0; n < 16; ++n) EXPECT_EQ(out[n], v[n % 8]);

    overwrite_rows(data->args().k, 0, 89, 90, -HUGE_VALF);  // now every score: as if no key were seen
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    expect_empty_rows(*data, 0, 0, 2);
}

}  // namespace
}  // namespace foveal_testing
