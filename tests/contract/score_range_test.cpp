// Options of the scores at the ends of fp32's range (contract 1.2): a finite score is never one that is not seen, and
// what float64 says of it holds.
#include <cfloat>
#include <cmath>
#include <string>
#include <vector>

#include "tests/contract/score_fixture.hpp"

namespace foveal_testing {
namespace {

using ScoreRange = ScoreOption;
INSTANTIATE_TEST_SUITE_P(Cpu, ScoreRange, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, ScoreRange, testing::Values(FOVEAL_BACKEND_SM90));

constexpr float kLeastBf16 = -0x1.FEp127F;

// The bias's types beside q's: its own, and f32.
std::vector<foveal_dtype> bias_types(const std::string& type) {
    if (type == " f32") return {FOVEAL_F32};
    return {type == " bf16" ? foveal_dtype{FOVEAL_BF16} : foveal_dtype{FOVEAL_F16}, FOVEAL_F32};
}

// The largest that the type holds, of either sign; in f32 also numbers that no 16 bits hold.
std::vector<float> ends_of(foveal_dtype dtype) {
    if (dtype == FOVEAL_F16) return {-65504.0F, 65504.0F, -1e4F};
    if (dtype == FOVEAL_BF16)
        return {kLeastBf16, -kLeastBf16, -1e4F, -1e5F, -2e6F, -1e9F, -1e30F, 3e38F, 1e-38F, 1e-40F};
    return {-FLT_MAX, FLT_MAX, kLeastBf16, -1e5F, -2e6F, -1e9F, -1e30F, -3e38F, 3e38F, 1e-38F, 1e-45F};
}

const std::vector<std::string>& shapes() {
    static const std::vector<std::string> shapes = {"b1 sq70 sk330 hq2 hk1 d64 lse", "b1 sq70 sk330 hq2 hk1 d128",
                                                    "b1 sq130 sk264 h1 d256 lse causal", "b1 sq70 sk330 h1 d128 lse"};
    return shapes;
}

TEST_P(ScoreRange, RowsOfOneBias) {
    for (const std::string& shape : shapes())
        for (const std::string& type : types())
            for (const foveal_dtype dtype : bias_types(type))
                for (const float value : ends_of(dtype)) {
                    SCOPED_TRACE(value);
                    expect_right(data_of(shape + type), backend(), {[=](int64_t, int64_t) { return value; }, dtype});
                }
}

// Of a row's keys the first, as many as a block has or more, are hidden by a finite number; every third row's all are.
TEST_P(ScoreRange, FiniteNumbersThatHide) {
    for (const std::string& shape : shapes())
        for (const std::string& type : types())
            for (const foveal_dtype dtype : bias_types(type))
                for (const float value : ends_of(dtype))
                    for (const int64_t hidden : {200, 256}) {
                        if (value > 0) continue;
                        SCOPED_TRACE(value);
                        expect_right(
                            data_of(shape + type), backend(),
                            {[=](int64_t i, int64_t j) { return j < hidden || i % 3 == 0 ? value : 0; }, dtype});
                    }
}

// -inf first, then a finite number alone; and large numbers after small ones, of either sign.
TEST_P(ScoreRange, LargeNumbersInLaterBlocks) {
    for (const std::string& shape : shapes())
        for (const std::string& type : types())
            for (const foveal_dtype dtype : bias_types(type))
                for (const float value : ends_of(dtype)) {
                    SCOPED_TRACE(value);
                    const auto hidden_first = [=](int64_t, int64_t j) { return j < 140 ? -HUGE_VALF : value; };
                    expect_right(data_of(shape + type), backend(), {hidden_first, dtype});
                    const auto rising = [=](int64_t i, int64_t j) {
                        return j % 7 != i % 7 || j < 140 ? 0 : value / static_cast<float>(1 + j % 5);
                    };
                    expect_right(data_of(shape + type), backend(), {rising, dtype});
                }
}

// All over the range, so that neighbours near its end have to be told apart.
TEST_P(ScoreRange, BiasesAllOverTheRange) {
    for (const std::string& shape : shapes())
        for (const std::string& type : types())
            for (const foveal_dtype dtype : bias_types(type)) {
                const float end = dtype == FOVEAL_F16 ? 65504.0F : 3.3e38F;
                expect_right(data_of(shape + type), backend(),
                             {[=](int64_t i, int64_t j) {
                                  const auto n = static_cast<float>((i * 131 + j * 71) % 257 - 128);
                                  return end * (n / 128);
                              },
                              dtype});
            }
}

TEST_P(ScoreRange, Softcaps) {
    size_t turn = 0;
    for (const std::string& type : types())
        for (const std::string softcap : {"1e-45", "1e-38", "1e-20", "0.5", "64", "65", "1000", "1e4", "1e6", "1e10",
                                          "1e20", "1e30", "1e38", "3e38"})
            for (const std::string logits : {"", " sd10", " sd1000", " alibi", " bias_f32=11"}) {
                // What the contract's tolerance is not for, and distances alone, which f32 has exactly.
                if (type == " f32" && (logits == " sd1000" || logits == " alibi")) continue;
                const std::string shape = turn++ % 2 == 0 ? "b1 sq70 sk330 hq2 hk1 d64" : "b1 sq128 sk256 hq2 hk1 d128";
                const CheckResult result =
                    check_case(parse_case(shape + type + " lse causal softcap" + softcap + logits), backend());
                EXPECT_TRUE(result.passed()) << result.message;
            }
}

TEST_P(ScoreRange, Scales) {
    for (const std::string& type : types())
        for (const std::string scale : {"1e-45", "1e-38", "1e-30", "1e-10", "-1e-38"})
            for (const std::string option : {"", " alibi", " bias_f32=11", " bias=11", " softcap30", " mask=11"}) {
                if (type == " f32" && option == " alibi") continue;  // distances alone, which f32 has exactly
                const CheckResult result = check_case(
                    parse_case("b1 sq70 sk330 hq2 hk1 d64 lse causal scale" + scale + option + type), backend());
                EXPECT_TRUE(result.passed()) << result.message;
            }
}

// Scores of a usual size, by a large scale on small queries; and where all scores would overflow, a refusal.
TEST_P(ScoreRange, LargeScales) {
    for (const std::string scale : {"1e10", "-1e20", "1e30"})
        for (const std::string option : {"", " alibi", " bias_f32=11", " softcap30", " mask=11"}) {
            const CheckResult result =
                check_case(parse_case("b1 sq70 sk330 hq2 hk1 d64 bf16 lse sd1 scale" + scale + option), backend());
            EXPECT_TRUE(result.passed()) << result.message;
        }
    for (const std::string option : {"", " alibi", " bias_f32=11"}) {
        const auto data = data_of("b1 sq70 sk330 hq2 hk1 d64 bf16 scale3e38" + option);
        const foveal_status status = foveal_forward(&data->args(), nullptr);
        if (!on_gpu() && option.empty()) {
            EXPECT_EQ(status, FOVEAL_OK) << foveal_last_error();
            continue;
        }
        EXPECT_EQ(status, FOVEAL_UNSUPPORTED);
        EXPECT_NE(std::string(foveal_last_error()).find("scale is 3e+38"), std::string::npos) << foveal_last_error();
    }
}

TEST_P(ScoreRange, Sinks) {
    for (const std::string& type : types())
        for (const float sink : {-FLT_MAX, -3e38F, -1e30F, -1e-38F, 1e-45F, 1e4F, 1e30F, 3e38F, FLT_MAX}) {
            SCOPED_TRACE(sink);
            for (const std::string& shape : shapes())
                expect_right(data_of(shape + type), backend(),
                             {.sinks = std::vector<float>(shape.find(" h1 ") == std::string::npos ? 2 : 1, sink)});
            if (type != " bf16") continue;  // in f32 all rows are one, and the ratio of two errors is chance
            const auto same = [=](int64_t i, int64_t) { return i % 2 == 0 ? sink : 0.5F; };
            expect_right(data_of("b1 sq70 sk330 hq2 hk1 d128 lse" + type), backend(),
                         {.bias = same, .sinks = std::vector<float>(2, sink)});
        }
}

// Slopes that fp32 can still multiply by every distance.
TEST_P(ScoreRange, Slopes) {
    for (const std::string& type : types())
        for (const float slope :
             {1e-45F, 1e-38F, 1e-10F, 5.0F, 9.0F, 100.0F, 1e4F, 1e9F, 1e30F, 8e35F, -1.0F, -1e9F, -8e35F})
            for (const std::string tail : {"", " causal", " left40 right3", " causal bias=11"}) {
                SCOPED_TRACE(slope);
                if (tail.ends_with("bias=11") && type != " bf16") continue;
                const std::string text = "b1 sq330 sk330 hq2 hk1 d64" + type;
                expect_right(data_of(text + (tail.ends_with("bias=11") ? " causal" : tail)), backend(),
                             {.slopes = {slope, slope / 2}});
            }
}

// Where every product with a distance but 0 is past the end, the nearest key is left, or the furthest.
TEST_P(ScoreRange, SlopesPastTheEnd) {
    for (const float slope : {1e37F, 3e38F, FLT_MAX, -3e38F}) {
        ScoreCall call(data_of("b1 sq300 sk200 hq2 hk1 d64 bf16 topleft"), backend(), {.slopes = {slope, slope}});
        ASSERT_EQ(foveal_forward(&call.args(), nullptr), FOVEAL_OK) << foveal_last_error();
        call.data().synchronize();
        std::vector<float> v(200 * 64), out(300 * 64);
        call.data().read(TensorId::kV, 0, 0, 0, 200, v.data());
        call.data().read(TensorId::kOut, 0, 1, 0, 300, out.data());
        for (int64_t i = 0; i < 300; ++i) {
            const int64_t key = slope > 0 ? std::min<int64_t>(i, 199) : i > 99 ? 0 : 199;
            for (int64_t c = 0; c < 64; ++c)
                ASSERT_EQ(out[static_cast<size_t>(i * 64 + c)], v[static_cast<size_t>(key * 64 + c)])
                    << backend_name(backend()) << " slope " << slope << " row " << i;
        }
    }
}

// +inf and NaN are what IEEE makes of them, and -inf hides.
TEST_P(ScoreRange, InfinitiesAndNaN) {
    for (const foveal_dtype dtype : {FOVEAL_BF16, FOVEAL_F32})
        for (const float value : {HUGE_VALF, std::nanf("")}) {
            ScoreCall call(
                data_of("b1 sq130 sk330 h1 d64 bf16"), backend(),
                {[=](int64_t i, int64_t j) { return i == 70 && j == 200 ? value
                                                    : j == 3            ? -HUGE_VALF
                                                                        : 0; }, dtype});
            ASSERT_EQ(foveal_forward(&call.args(), nullptr), FOVEAL_OK) << foveal_last_error();
            call.data().synchronize();
            std::vector<float> out(130 * 64);
            call.data().read(TensorId::kOut, 0, 0, 0, 130, out.data());
            for (size_t i = 0; i < 130; ++i) EXPECT_EQ(std::isnan(out[i * 64]), i == 70) << i;
        }
}

// The same bias at other addresses and with other strides gives the same bits (contract 1.7).
TEST_P(ScoreRange, ABiasHasTheSameBitsWhereverItLies) {
    for (const std::string tail : {" full", " causal", " alibi causal", " mask=11", " softcap30"})
        for (const std::string head_dim : {" d64", " d128", " d256", " d512"}) {
            if (!on_gpu() && head_dim != " d64") continue;  // no option knows the head dimension there
            for (const std::string& type : types())
                for (const foveal_dtype dtype : bias_types(type)) {
                    const auto data = data_of("b2 sq70 sk200 hq4 hk2 lse" + head_dim + type + tail);
                    std::vector<std::byte> expected;
                    const Shape shape{2, 4, 70, 200};
                    std::vector<float> values(static_cast<size_t>(elements_of(shape)));
                    for (size_t n = 0; n < values.size(); ++n)
                        values[n] = n % 50 == 0 ? -HUGE_VALF : 2 * std::sin(static_cast<float>(n));
                    for (const auto& [padding, offset] :
                         {std::pair<int64_t, int64_t>{0, 16}, {0, 17}, {0, 18}, {8, 16}, {1, 16}, {3, 21}}) {
                        StridedTensor bias(backend(), dtype, shape, packed_strides(shape, padding), offset);
                        bias.set(values);
                        foveal_forward_args args = data->args();
                        args.bias = bias.view();
                        data->poison_outputs();
                        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
                        data->synchronize();
                        std::vector<std::byte> got = data->bytes(TensorId::kOut);
                        const std::vector<std::byte> lse = data->bytes(TensorId::kLse);
                        got.insert(got.end(), lse.begin(), lse.end());
                        if (expected.empty()) expected = got;
                        EXPECT_TRUE(got == expected) << backend_name(backend()) << " " << to_text(data->the_case())
                                                     << " padding " << padding << " offset " << offset;
                    }
                }
        }
}

}  // namespace
}  // namespace foveal_testing
