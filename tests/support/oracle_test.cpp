// The judge judged: number formats, oracle, reference and verdict on results known beforehand.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "tests/support/check.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/tolerance.hpp"

namespace foveal_testing {
namespace {

TEST(NumberFormats, EveryF16AndBf16ReadsBack) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float f16 = f16_to_float(half), bf16 = bf16_to_float(half);
        EXPECT_TRUE(std::isnan(f16) || float_to_f16(f16) == half) << bits;
        EXPECT_TRUE(std::isnan(bf16) || float_to_bf16(bf16) == half) << bits;
        EXPECT_EQ(std::isnan(f16), (bits & 0x7FFF) > 0x7C00);
    }
    EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(NAN))));
    EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
}

// From zero on, each code is the one before it and one unit of its last bit: 2^-9 up to 2^-5, and twice as much behind
// each power of two from there on.
TEST(NumberFormats, EveryE4m3IsWhatTheDefinitionSays) {
    double expected = 0, unit = 0x1p-9;
    for (uint32_t code = 0; code < 0x7F; ++code, expected += unit) {
        if (code >= 16 && code % 8 == 0) unit *= 2;
        EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(code)), expected) << code;
        EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(code | 0x80)), -expected) << code;
        EXPECT_EQ(float_to_e4m3(static_cast<float>(expected)), code);
        EXPECT_EQ(float_to_e4m3(static_cast<float>(-expected)), code | 0x80);
        if (code == 0x7E) continue;
        const auto tie = static_cast<float>(expected + unit / 2);
        EXPECT_EQ(float_to_e4m3(tie), code + code % 2) << code;
        EXPECT_EQ(float_to_e4m3(std::nextafter(tie, 0.0F)), code) << code;
        EXPECT_EQ(float_to_e4m3(std::nextafter(tie, 1e9F)), code + 1) << code;
    }
    EXPECT_EQ(e4m3_to_float(0x7E), 448);
    for (const float large : {448.0F, 464.0F, 465.0F, 1e30F, HUGE_VALF}) {
        EXPECT_EQ(float_to_e4m3(large), 0x7E) << large;
        EXPECT_EQ(float_to_e4m3(-large), 0xFE) << large;
    }
    EXPECT_TRUE(std::isnan(e4m3_to_float(0x7F)) && std::isnan(e4m3_to_float(0xFF)));
    EXPECT_EQ(float_to_e4m3(NAN) & 0x7F, 0x7F);
}

TEST(NumberFormats, RoundToNearestEven) {
    EXPECT_EQ(round_to(FOVEAL_F16, 1.0f + 0x1p-11f), 1.0f);
    EXPECT_EQ(round_to(FOVEAL_F16, 1.0f + 3 * 0x1p-11f), 1.0f + 0x1p-9f);
    EXPECT_EQ(round_to(FOVEAL_BF16, 1.0f + 0x1p-8f), 1.0f);
    EXPECT_EQ(round_to(FOVEAL_F16, 65519.0f), 65504.0f);
    EXPECT_EQ(round_to(FOVEAL_F16, 65520.0f), HUGE_VALF);
    EXPECT_EQ(round_to(FOVEAL_F16, 0x1p-25f), 0.0f);
    EXPECT_EQ(round_to(FOVEAL_F16, 0x1.8p-25f), 0x1p-24f);
    for (const foveal_dtype dtype : {FOVEAL_F16, FOVEAL_BF16}) {
        for (const float x : {0.1f, -3.14159f, 1e-6f, 40000.0f, 6.1e-5f, 5.9e-8f, -1e-3f}) {
            EXPECT_EQ(static_cast<double>(round_to(dtype, x)), round_to(dtype, static_cast<double>(x))) << x;
        }
    }
    EXPECT_EQ(round_to(FOVEAL_F32, 0.1), static_cast<double>(0.1f));
}

KeyValueHead two_keys() {
    KeyValueHead head;
    head.len_k = 2;
    head.k_transposed = {0, 2};  // d = 1
    head.v = {1, 10};            // d_v = 1
    return head;
}

TEST(Oracle, TwoKeysByHand) {
    const Case c = parse_case("sq1 sk2 h1 d1 f32 scale0.5");
    const float q = 3;
    OracleRow row;
    oracle_row(c, 0, 1, &q, two_keys(), {}, row);
    const double e = std::exp(3.0);  // scores 0 and 0.5 * 3 * 2
    EXPECT_NEAR(row.out[0], (1 + 10 * e) / (1 + e), 1e-14);
    EXPECT_NEAR(row.lse, std::log(1 + e), 1e-14);
    ReferenceRow reference;
    reference_row(c, 0, 1, &q, two_keys(), {}, reference);
    EXPECT_NEAR(reference.out[0], row.out[0], 1e-6);
}

TEST(Oracle, KeysThatSomeRowSees) {
    const auto seen = [](const std::string& text) {
        const KeyInterval keys = keys_seen_by_any(parse_case(text + " h1"), 0);
        return std::pair(keys.first, keys.last);
    };
    EXPECT_EQ(seen("sq10 sk40 causal topleft"), std::pair(int64_t{0}, int64_t{10}));
    EXPECT_EQ(seen("sq70 sk1000 left33 causal"), std::pair(int64_t{897}, int64_t{1000}));
    EXPECT_EQ(seen("sq70 sk1000 chunk100 causal"), std::pair(int64_t{900}, int64_t{1000}));
    EXPECT_EQ(seen("sq70 sk7 causal"), std::pair(int64_t{0}, int64_t{7}));
    EXPECT_EQ(seen("sq70 sk1000 full used_q=0"), std::pair(int64_t{0}, int64_t{0}));
}

TEST(Oracle, ANaNOfAValueMayReachItsTileAlone) {
    const Case c = parse_case("s300 h1 causal");
    const auto reaches = [&](int64_t key, int64_t row) { return may_reach(c, row, 300, 300, key); };
    EXPECT_TRUE(reaches(100, 0) && reaches(130, 128) && reaches(299, 256));
    EXPECT_FALSE(reaches(128, 127) || reaches(130, 0) || reaches(299, 255));
}

TEST(Oracle, AKeyWithoutWeightAddsNothing) {
    KeyValueHead head = two_keys();
    head.v[1] = NAN;
    const Case c = parse_case("sq1 sk2 h1 d1 f32 scale0.5");
    const float q = 3;
    RowOptions options;
    options.visible = {1, 0};
    for (const std::optional<float> sink : {std::optional<float>(), std::optional<float>(0.0f)}) {
        options.sink = sink;
        OracleRow row;
        oracle_row(c, 0, 1, &q, head, options, row);
        EXPECT_FALSE(row.empty);
        EXPECT_EQ(row.out[0], sink ? 0.5 : 1.0);
        RowOptions hidden = options;
        hidden.visible = {0, 0};
        oracle_row(c, 0, 1, &q, head, hidden, row);
        EXPECT_TRUE(row.empty);
        EXPECT_EQ(row.out[0], 0.0);
        EXPECT_EQ(row.lse, sink ? 0.0 : -HUGE_VAL);
    }
}

TEST(Oracle, RowsWithoutKeysAndRowsOfMinusInfinity) {
    const Case c = parse_case("sq3 sk2 h1 d1 f32 causal");
    const float q = 1;
    OracleRow row;
    oracle_row(c, 0, 3, &q, two_keys(), {}, row);  // off = -1: row 0 sees nothing
    EXPECT_EQ(row.out[0], 0);
    EXPECT_EQ(row.lse, -HUGE_VAL);
    oracle_row(c, 1, 3, &q, two_keys(), {}, row);
    EXPECT_EQ(row.out[0], 1);
    KeyValueHead head = two_keys();
    head.k_transposed = {-HUGE_VALF, -HUGE_VALF};
    oracle_row(c, 2, 3, &q, head, {}, row);
    EXPECT_EQ(row.out[0], 0);
    EXPECT_EQ(row.lse, -HUGE_VAL);
}

// d = 1, q = 3, scale 0.5; keys 0 and 2, values 1 and 10: scores 0 and 3 before any option.
void expect_scores(const std::string& tokens, const RowOptions& options, double x0, double x1) {
    const Case c = parse_case("sq1 sk2 h1 d1 f32 scale0.5 " + tokens);
    const float q = 3;
    OracleRow row;
    oracle_row(c, 0, 1, &q, two_keys(), options, row);
    const double sink = options.sink ? std::exp(static_cast<double>(*options.sink)) : 0;
    const double sum = std::exp(x0) + std::exp(x1) + sink;
    EXPECT_NEAR(row.out[0], (std::exp(x0) + 10 * std::exp(x1)) / sum, 1e-14) << tokens;
    EXPECT_NEAR(row.lse, std::log(sum), 1e-14) << tokens;
    ReferenceRow reference;
    reference_row(c, 0, 1, &q, two_keys(), options, reference);
    EXPECT_NEAR(reference.out[0], row.out[0], 1e-5) << tokens;
}

TEST(Oracle, EveryOptionByHand) {
    expect_scores("softcap2", {}, 0, 2 * std::tanh(1.5));
    expect_scores("alibi", {.slope = 0.25f}, -0.25, 3);  // off = 1: key 1 is the query's own
    expect_scores("alibi topleft", {.slope = 0.25f}, 0, 2.75);
    expect_scores("bias=11", {.bias = {0.5f, -1}}, 0.5, 2);
    expect_scores("bias=11", {.bias = {-HUGE_VALF, -1}}, -HUGE_VAL, 2);
    expect_scores("mask=11", {.visible = {1, 0}}, 0, -HUGE_VAL);
    expect_scores("sinks", {.sink = 1.5f}, 0, 3);
    expect_scores("softcap2 alibi bias=11 sinks", {.slope = 0.25f, .sink = 4.0f, .bias = {0.5f, -1}}, 0.25,
                  2 * std::tanh(1.5) - 1);
}

TEST(Oracle, ASinkAloneIsTheLogSumExp) {
    const Case c = parse_case("sq3 sk2 h1 d1 f32 causal sinks");
    const float q = 1;
    for (const auto& [i, options] : {std::pair<int64_t, RowOptions>{0, {.sink = 1.25f}},
                                     {2, {.sink = 1.25f, .visible = {0, 0}}},
                                     {2, {.sink = 1.25f, .bias = {-HUGE_VALF, -HUGE_VALF}}}}) {
        OracleRow row;
        oracle_row(c, i, 3, &q, two_keys(), options, row);
        EXPECT_EQ(row.out[0], 0);
        EXPECT_EQ(row.lse, 1.25);
    }
}

TEST(Oracle, ChunksHoldTheirOwnKeys) {
    const auto seen = [](const char* text, int64_t i, int64_t len_q, int64_t len_k) {
        const KeyInterval keys = keys_seen_by(parse_case(text), i, len_q, len_k);
        return std::pair(keys.first, keys.last);
    };
    EXPECT_EQ(seen("s10 h1 chunk4", 5, 10, 10), std::pair(int64_t{4}, int64_t{8}));
    EXPECT_EQ(seen("s10 h1 chunk4 causal", 5, 10, 10), std::pair(int64_t{4}, int64_t{6}));
    EXPECT_EQ(seen("s10 h1 chunk4", 9, 10, 10), std::pair(int64_t{8}, int64_t{10}));
    EXPECT_EQ(seen("s10 h1 chunk4", 5, 10, 7), std::pair(int64_t{0}, int64_t{4})) << "position 2";
    EXPECT_EQ(seen("s10 h1 chunk4", 2, 10, 7), std::pair(int64_t{0}, int64_t{0})) << "position -1: an earlier chunk";
    EXPECT_EQ(seen("s10 h1 chunk4 topleft", 9, 10, 7), std::pair(int64_t{0}, int64_t{0})) << "past the keys";
}

TEST(Oracle, NaNStays) {
    const Case c = parse_case("sq1 sk2 h1 d1 f32");
    const float q = NAN;
    OracleRow row;
    oracle_row(c, 0, 1, &q, two_keys(), {}, row);
    EXPECT_TRUE(std::isnan(row.out[0]));
    EXPECT_TRUE(std::isnan(row.lse));
}

int64_t count_rows(const std::vector<RowGroup>& groups, std::set<std::tuple<int64_t, int64_t, int64_t>>& rows) {
    int64_t count = 0;
    for (const RowGroup& group : groups) {
        for (const RowId& id : group.rows) {
            rows.insert({group.sequence, id.head_q, id.row});
            ++count;
        }
    }
    return count;
}

TEST(Oracle, AllRowsAreEachRowOnce) {
    const Case c = parse_case("varlen qlens=5,0,130 klens=1,2,3 hq6 hk2 d8");
    std::set<std::tuple<int64_t, int64_t, int64_t>> rows;
    EXPECT_EQ(count_rows(all_rows(c, 64), rows), 135 * 6);
    EXPECT_EQ(rows.size(), 135u * 6);
}

TEST(Oracle, SampledRowsHoldTheCorners) {
    const Case c = parse_case("b9 s1000 hq8 hk2 d8");
    std::set<std::tuple<int64_t, int64_t, int64_t>> rows;
    const int64_t count = count_rows(sampled_rows(c, 384), rows);
    EXPECT_GE(count, 300);
    EXPECT_LE(count, 500);
    bool first = false, last = false;
    for (const auto& [sequence, head, row] : rows) {
        ASSERT_TRUE(0 <= sequence && sequence < 9 && 0 <= head && head < 8 && 0 <= row && row < 1000);
        first |= sequence == 0 && row == 0;
        last |= sequence == 8 && row == 999;
    }
    EXPECT_TRUE(first && last);
    EXPECT_TRUE(sampled_rows(parse_case("b3 sq0 sk5 h1"), 384).empty());
}

// A result that is the reference itself, with `defect` added to one element.
Verdict verdict_with(double defect, float reference_error = 1e-3f) {
    ErrorStatistics statistics(FOVEAL_F32);
    for (int64_t row = 0; row < 100; ++row) {
        const double oracle[2] = {1.0, -0.5};
        const float reference[2] = {1.0f + reference_error, -0.5f};
        float got[2] = {reference[0], reference[1]};
        if (row == 50) got[1] += static_cast<float>(defect);
        statistics.add_row(0, 0, row, 2, got, oracle, reference);
    }
    return judge(statistics);
}

TEST(Tolerance, AcceptsTheReferenceAndRefusesAWorseOne) {
    EXPECT_TRUE(verdict_with(0).pass) << verdict_with(0).failure;
    EXPECT_TRUE(verdict_with(1.9e-3).pass);
    EXPECT_FALSE(verdict_with(2.1e-3).pass) << "beyond twice the reference's largest error";
    EXPECT_FALSE(verdict_with(NAN).pass);
    EXPECT_FALSE(verdict_with(HUGE_VAL).pass);
    EXPECT_NE(verdict_with(1).failure.find("i 50 c 1"), std::string::npos) << verdict_with(1).failure;
}

TEST(Tolerance, RefusesALargerNorm) {
    for (const double factor : {1.1, 1.3}) {
        ErrorStatistics statistics(FOVEAL_F32);
        for (int64_t row = 0; row < 100; ++row) {
            const double oracle = 1;
            const float reference = 1.001f, got = static_cast<float>(1 + 0.001 * factor);
            statistics.add_row(0, 0, row, 1, &got, &oracle, &reference);
        }
        EXPECT_EQ(judge(statistics).pass, factor < 1.2) << judge(statistics).failure;
    }
}

TEST(Tolerance, LogSumExp) {
    const auto verdict = [](double got, double oracle) {
        ErrorStatistics statistics(FOVEAL_F32);
        statistics.add_lse(0, 0, 0, got, oracle);
        return judge(statistics).pass;
    };
    EXPECT_TRUE(verdict(10.0002, 10));
    EXPECT_FALSE(verdict(10.0003, 10));
    EXPECT_TRUE(verdict(-HUGE_VAL, -HUGE_VAL));
    EXPECT_FALSE(verdict(-1e30, -HUGE_VAL));
    EXPECT_FALSE(verdict(HUGE_VAL, -HUGE_VAL));
    EXPECT_FALSE(verdict(NAN, 0));
}

TEST(Tolerance, ACaseWhoseReferenceOverflowsProvesNothing) {
    ErrorStatistics statistics(FOVEAL_F32);
    const double oracle = 1;
    const float reference = HUGE_VALF, got = 1;
    statistics.add_row(0, 0, 0, 1, &got, &oracle, &reference);
    EXPECT_FALSE(judge(statistics).pass);
}

// The whole path without the library: outputs left as they were must be noticed.
TEST(Verify, PoisonThatIsLeftIsNoticed) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32 lse"), FOVEAL_BACKEND_CPU);
    const Verdict verdict = verify(*data);
    EXPECT_FALSE(verdict.pass);
    EXPECT_NE(verdict.failure.find("never written"), std::string::npos) << verdict.failure;
}

}  // namespace
}  // namespace foveal_testing
