// Dropout (contract 1.16): the forward call, and what is refused. Gradients: backward_dropout_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/contract/dropout_fixture.hpp"
#include "tests/cpu/fixture.hpp"
#include "tests/support/backward_data.hpp"
#include "tests/support/dropout_oracle.hpp"

namespace foveal_testing {
namespace {

// The known answers that Random123 publishes of philox4x32-10 (its file kat_vectors), of the oracle's own generator.
TEST(Contract_1_16, TheOraclesGeneratorGivesThePublishedAnswers) {
    using Words = std::array<uint32_t, 4>;
    EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox4x32_10({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Contract_1_16, TheMaskWrittenDownIsTheOracles) {
    const Case c = parse_case("b2 sq5 sk77 hq4 hk2 d8 dropout0.3 dropstate=18446744073709551615,5000000000");
    const std::vector<uint8_t> mask = mask_of(c);
    size_t at = 0;
    for (int64_t sequence = 0; sequence < 2; ++sequence)
        for (int64_t head = 0; head < 4; ++head)
            for (int64_t row = 0; row < 5; ++row)
                for (const float kept : kept_keys(c, sequence, head, row, 77)) ASSERT_EQ(mask[at++], kept);
}

TEST(Contract_1_16, RightBesideEveryOption) {
    for (const std::string type : {" f32", " bf16", " f16"}) {
        for (const std::string words :
             {"b2 sq113 sk203 hq4 hk2 d64 causal lse dropout0.1", "b2 s130 h2 d40 dv24 left70 dropout0.5 pad",
              "b2 sq3 sk700 hq4 hk2 d64 lse dropout0.2", "b1 sq1 sk3000 hq8 hk1 d64 sinks lse dropout0.2",
              "b3 sq70 sk200 hq4 hk2 d32 used_q=70,0,9 used_k=200,5,130 lse dropout0.3",
              "b1 s300 h2 d64 softcap5 alibi sinks bias=bh mask=b1 lse dropout0.4",
              "varlen qlens=5,0,130 klens=64,9,300 hq4 hk2 d64 causal lse dropout0.1",
              "varlen qlens=9,33 sk100 used_k=100,37 hq4 hk2 d64 causal tree dropout0.25",
              "b2 sq40 sk120 hq4 hk2 d64 page16 used_k=120,77 qoff=60,-3 causal dropout0.25",
              "b1 s128 h1 d64 dropout0.999985 vnan40", "b1 s64 h1 d16 chunk20 dropout0.0001 sd10"})
            expect_right(words + type);
    }
    for (const std::string type : {" e4m3 descale", " bf16 kv_e4m3 descale", " f32 kv_e4m3"})
        for (const std::string words :
             {"b2 sq65 sk203 hq4 hk2 d64 causal lse dropout0.1", "b2 sq2 sk203 hq4 hk2 d64 lse dropout0.3"})
            expect_right(words + type);
}

// v is the identity: what comes out is the weights, and 0 is where one was dropped. Tiles, few queries and parts of
// keys, one thread and several, heads together and apart.
TEST(Contract_1_16, TheWeightsShowTheMask) {
    for (const std::string type : {"f32", "bf16"}) {
        for (const int64_t rows : {1, 3, 40, 150}) {
            const std::string shape = " sk600 hq4 hk2 d16 dv600 " + type + " lse dropout0.3";
            const std::string text = "b2 sq" + std::to_string(rows) + shape;
            const std::vector<uint8_t> mask = mask_of(parse_case(text));
            for (const int32_t threads : {1, 3}) {
                ASSERT_EQ(foveal_set_num_threads(threads), FOVEAL_OK);
                const auto data = on_cpu(text);
                make_identity(data->args().v);
                ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
                size_t at = 0;
                for (int64_t sequence = 0; sequence < 2; ++sequence)
                    for (int64_t head = 0; head < 4; ++head)
                        for (const float weight : rows_of(*data, TensorId::kOut, sequence, head))
                            ASSERT_EQ(weight != 0, mask[at++] != 0) << text << " element " << at - 1;
            }
        }
    }
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
}

// Packed and dense sequences have the same numbers, and so the same bits.
TEST(Contract_1_16, TheFormOfABatchChangesNoBit) {
    const std::string rest = " hq4 hk2 d64 bf16 causal lse dropout0.2";
    const auto dense = run("b2 sq70 sk90" + rest);
    const auto packed = run("varlen qlens=70,70 klens=90,90" + rest);
    for (int64_t sequence = 0; sequence < 2; ++sequence)
        for (int64_t head = 0; head < 4; ++head)
            for (const TensorId id : {TensorId::kOut, TensorId::kLse})
                EXPECT_TRUE(same_bits(rows_of(*dense, id, sequence, head), rows_of(*packed, id, sequence, head)));
    const auto paged = run("b2 sq70 sk90 page16 used_k=90,90" + rest);
    EXPECT_TRUE(same_bits(rows_of(*dense, TensorId::kOut, 1, 3), rows_of(*paged, TensorId::kOut, 1, 3)));
}

TEST(Contract_1_16, TheLogSumExpKnowsNothingOfIt) {
    for (const std::string words : {"b2 sq70 sk90 hq4 hk2 d64 f32 sinks lse", "b2 sq2 sk900 hq4 hk2 d64 bf16 lse"}) {
        const auto without = run(words), with = run(words + " dropout0.5");
        EXPECT_TRUE(same_bits(rows_of(*without, TensorId::kLse, 1, 3), rows_of(*with, TensorId::kLse, 1, 3)));
        EXPECT_FALSE(same_bits(rows_of(*without, TensorId::kOut, 1, 3), rows_of(*with, TensorId::kOut, 1, 3)));
    }
}

// Below 2^-17, which rounds to 0.
TEST(Contract_1_16, DroppingNothingIsNoDropout) {
    for (const std::string words :
         {"b2 sq70 sk90 hq4 hk2 d64 f32 sinks", "b2 sq70 sk90 hq4 hk2 d64 bf16", "b2 sq2 sk900 hq4 hk2 d64 f16"}) {
        const auto without = run(words), with = run(words + " dropout0.000007");
        EXPECT_EQ(without->bytes(TensorId::kOut), with->bytes(TensorId::kOut)) << words;
    }
}

TEST(Contract_1_16, AnotherStateIsAnotherMask) {
    const std::string words = "b1 s70 h2 d64 f32 dropout0.5 dropstate=";
    const auto out = [&](const std::string& state) { return run(words + state)->bytes(TensorId::kOut); };
    EXPECT_EQ(out("1,2"), out("1,2"));
    for (const std::string other : {"2,2", "1,3", "4294967297,2", "1,4294967298", "2,1"})
        EXPECT_NE(out("1,2"), out(other)) << other;
}

// The mean over many masks is attention without dropout.
TEST(Contract_1_16, TheExpectationIsThatWithoutDropout) {
    constexpr int kStates = 400;
    const std::string words = "b1 sq40 sk64 h1 d16 dv8 f32";
    const std::vector<float> expected = rows_of(*run(words), TensorId::kOut, 0, 0);
    std::vector<double> sum(expected.size()), squares(expected.size());
    for (int state = 0; state < kStates; ++state) {
        const auto data = run(words + " dropout0.25 dropstate=9," + std::to_string(state));
        const std::vector<float> out = rows_of(*data, TensorId::kOut, 0, 0);
        for (size_t i = 0; i < out.size(); ++i) {
            sum[i] += static_cast<double>(out[i]);
            squares[i] += static_cast<double>(out[i]) * static_cast<double>(out[i]);
        }
    }
    for (size_t i = 0; i < expected.size(); ++i) {
        const double mean = sum[i] / kStates;
        const double deviation = std::sqrt(squares[i] / kStates - mean * mean);
        EXPECT_NEAR(mean, static_cast<double>(expected[i]), 5 * deviation / std::sqrt(kStates)) << i;
    }
}

// A dropped key counts as seen: 0 times a NaN is NaN. Of a key that no row sees, nothing comes through.
TEST(Contract_1_16, ADroppedKeyIsSeen) {
    for (const int64_t rows : {2, 40}) {
        const std::string text = "b1 sq" + std::to_string(rows) + " sk40 h1 d16 f32 dropout0.5";
        const auto data = on_cpu(text);
        overwrite_rows(data->args().v, 0, 7, 8, NAN);
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        for (const float x : rows_of(*data, TensorId::kOut, 0, 0)) ASSERT_TRUE(std::isnan(x));
        const auto unseen = on_cpu(text + " used_k=7");
        overwrite_rows(unseen->args().v, 0, 7, 8, NAN);
        ASSERT_EQ(foveal_forward(&unseen->args(), nullptr), FOVEAL_OK);
        for (const float x : rows_of(*unseen, TensorId::kOut, 0, 0)) ASSERT_FALSE(std::isnan(x));
    }
}

TEST(Contract_1_16, IsRefusedByName) {
    const auto data = on_cpu("s5 h2 d8 f32 dropout0.5");
    const auto refusal = [&](const auto& change) -> std::string {
        foveal_forward_args args = data->args();
        change(args);
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
        return foveal_last_error();
    };
    EXPECT_EQ(refusal([](auto& args) { args.dropout_p = 1; }), "dropout_p is 1; it must lie in [0, 1)");
    EXPECT_EQ(refusal([](auto& args) { args.dropout_p = -0.5f; }), "dropout_p is -0.5; it must lie in [0, 1)");
    EXPECT_EQ(refusal([](auto& args) { args.dropout_p = NAN; }), "dropout_p is nan; it must lie in [0, 1)");
    EXPECT_EQ(refusal([](auto& args) { args.dropout_state = nullptr; }),
              "dropout_state is NULL and dropout_p is 0.5; it must hold a seed and an offset");
    EXPECT_EQ(refusal([](auto& args) { args.dropout_p = 0; }),
              "dropout_state is present and dropout_p is 0; there are both or neither");
    EXPECT_EQ(refusal([](auto& args) {
                  args.dropout_state =
                      reinterpret_cast<const uint64_t*>(reinterpret_cast<const std::byte*>(args.dropout_state) + 4);
              }),
              "dropout_state is not aligned to 8 bytes");
    EXPECT_EQ(refusal([](auto& args) { args.dropout_state = static_cast<const uint64_t*>(args.out.data); }),
              "out overlaps dropout_state; they must lie apart");
    EXPECT_EQ(refusal([](auto& args) { args.reserved_2 = 1; }), "reserved_2 is 1; it must be 0");
    foveal_forward_args many = shape_args(parse_case("b524288 s1 h8193 d8 f32 dropout0.5"), kCpu);
    EXPECT_EQ(foveal_supports(&many), FOVEAL_INVALID_ARGUMENT);
    EXPECT_EQ(std::string(foveal_last_error()),
              "there are 524288 sequences of 8193 query heads; beside dropout_p, at most 2^32 heads in all are "
              "supported");
    many.dropout_p = 0;
    EXPECT_EQ(foveal_supports(&many), FOVEAL_OK);
}

std::string plan_text(const foveal_forward_args& args) {
    foveal_plan* plan = nullptr;
    EXPECT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    std::string text(1 << 13, '\0');
    EXPECT_EQ(foveal_plan_describe(plan, text.data(), text.size(), nullptr), FOVEAL_OK);
    foveal_plan_destroy(plan);
    return text.c_str();
}

// Never accepted and ignored: a problem that drops weights gets a kernel that does, few queries too.
TEST(Contract_1_16, Sm90HasKernelsForIt) {
    for (const std::string form :
         {"b1 s300", "b1 sq1 sk300", "varlen qlens=9,1 klens=300,1", "varlen qlens=9,1 sk300 used_k=9,300",
          "b2 sq5 sk300 page16 used_k=300,7", "b2 sq40 sk300 qoff=60,-3 causal tree"})
        for (const std::string rest : {" hq8 hk1 d64 bf16", " hq8 hk2 d128 f16 alibi sinks lse",
                                       " h2 d192 dv128 bf16 softcap5", " h2 d256 f16", " h2 d512 bf16 left9"}) {
            const std::string words = form + rest;
            const foveal_forward_args args = shape_args(parse_case(words + " dropout0.5"), FOVEAL_BACKEND_SM90);
            ASSERT_EQ(foveal_supports(&args), FOVEAL_OK) << words << ": " << foveal_last_error();
            EXPECT_NE(plan_text(args).find("sm90 forward"), std::string::npos) << words;
            EXPECT_NE(plan_text(args).find("and dropout"), std::string::npos) << plan_text(args);
            const foveal_forward_args none = shape_args(parse_case(words + " dropout0.000007"), FOVEAL_BACKEND_SM90);
            EXPECT_EQ(plan_text(none).find("and dropout"), std::string::npos) << plan_text(none);
        }
    for (const std::string words : {"b1 s300 h2 d64 bf16", "b1 s300 h2 d128 f16 alibi causal", "b2 s64 h2 d256 bf16",
                                    "varlen qlens=9,1 klens=30,1 h2 d512 bf16"}) {
        foveal_forward_args forward;
        const foveal_backward_args args =
            backward_shape_args(parse_backward_case("backward " + words + " dropout0.5"), FOVEAL_BACKEND_SM90, forward);
        foveal_plan* plan = nullptr;
        ASSERT_EQ(foveal_backward_plan_create(&args, -1, &plan), FOVEAL_OK) << words << ": " << foveal_last_error();
        std::string text(1 << 13, '\0');
        EXPECT_EQ(foveal_plan_describe(plan, text.data(), text.size(), nullptr), FOVEAL_OK);
        foveal_plan_destroy(plan);
        EXPECT_NE(text.find(", with dropout"), std::string::npos) << text.c_str();
    }
}

TEST(Contract_1_16, WhatSm90RefusesByName) {
    const auto refusal = [](const std::string& words, foveal_dtype out) -> std::string {
        foveal_forward_args args = shape_args(parse_case(words + " dropout0.5"), FOVEAL_BACKEND_SM90);
        if (out != FOVEAL_E4M3) args.out.dtype = out;
        EXPECT_EQ(foveal_supports(&args), FOVEAL_UNSUPPORTED) << words;
        return foveal_last_error();
    };
    EXPECT_EQ(refusal("s300 h2 d64 e4m3", FOVEAL_E4M3).find("dropout_p is 0.5"), 0u) << foveal_last_error();
    EXPECT_EQ(refusal("s300 h2 d64 bf16", FOVEAL_F32).find("out.dtype is f32 beside dropout_p 0.5"), 0u)
        << foveal_last_error();
    EXPECT_EQ(refusal("s300 h2 d64 bf16 kv_e4m3", FOVEAL_E4M3).find("k.dtype is e4m3"), 0u) << foveal_last_error();
}

}  // namespace
}  // namespace foveal_testing
