// The options of the scores (softcap, ALiBi, sinks, bias, boolean mask) on the CPU backend, by the sections of
// docs/contract.md. Accuracy over many shapes is the business of suites_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

const std::vector<std::string>& every_option() {
    static const std::vector<std::string> options = {
        "softcap3",         "alibi",
        "alibi_b",          "sinks",
        "bias=bh",          "bias_f32=1h",
        "bias=b1",          "bias=11",
        "mask=bh",          "mask=1h",
        "mask=b1",          "mask=11",
        "bias=bh bias_inf", "softcap3 alibi_b sinks1 bias_f32=bh bias_inf mask=1h chunk50"};
    return options;
}

// ---- 1.1 Tensors

TEST(ScoreOptions_1_1, EveryTypeShapeAndMemoryOrder) {
    for (const std::string& option : every_option()) {
        for (const std::string type : {"f32", "bf16", "f16"}) {
            expect_right("b3 sq33 sk70 hq6 hk2 d24 dv40 lse " + type + " " + option);
            expect_right("b3 sq33 sk70 hq6 hk2 d24 lse pad bhsd causal " + type + " " + option);
        }
        expect_right("b3 sq33 sk70 hq6 hk2 d24 f32 lse used_q=33,0,20 used_k=3,70,65 " + option);
    }
}

TEST(ScoreOptions_1_1, Varlen) {
    for (const std::string option :
         {"softcap3", "alibi", "alibi_b", "sinks", "softcap3 alibi_b sinks chunk30 causal"}) {
        expect_right("varlen qlens=33,0,4,70 klens=50,7,9,200 hq6 hk2 d24 bf16 lse " + option);
        expect_right("varlen qlens=33,0,4,70 klens=50,7,9,200 hq6 hk2 d24 f32 lse used_k=9,7,0,130 " + option);
    }
}

TEST(ScoreOptions_1_1, PackedInputs) {
    for (const std::string text :
         {"b2 s70 h4 d24 bf16 lse", "b2 s70 hq6 hk2 d24 f32 causal lse pad", "b2 s70 hq6 hk2 d24 f16 lse bhsd alibi",
          "varlen qlens=5,0,70 klens=5,0,70 hq6 hk2 d24 f32 causal lse"}) {
        expect_right(text + " qkv");
    }
}

// ---- 1.2 Score

// An option at the value that changes nothing changes no bit; where it makes the scores be scaled first, hardly any.
TEST(ScoreOptions_1_2, NeutralValuesAreNeutral) {
    const std::string text = "b2 sq70 sk130 hq4 hk2 d24 f32 causal lse";
    const auto plain = run(text);
    const auto expect_same = [&](const std::string& option,
                                 const std::function<void(const foveal_forward_args&)>& set) {
        const auto data = on_cpu(text + " " + option);
        set(data->args());
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
        EXPECT_EQ(data->bytes(TensorId::kOut), plain->bytes(TensorId::kOut)) << option;
        EXPECT_EQ(data->bytes(TensorId::kLse), plain->bytes(TensorId::kLse)) << option;
    };
    expect_same("mask=11", [](const foveal_forward_args& args) {
        std::fill_n(static_cast<uint8_t*>(args.mask.data), 70 * 130, uint8_t{3});
    });
    expect_same("sinks", [](const foveal_forward_args& args) {
        std::fill_n(static_cast<float*>(args.sinks.data), 4, -HUGE_VALF);
    });
    expect_same("chunk1000000", [](const foveal_forward_args&) {});
    const auto expect_near = [&](const std::string& option,
                                 const std::function<void(const foveal_forward_args&)>& set) {
        const auto data = on_cpu(text + " " + option);
        set(data->args());
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
        const std::vector<float> got = rows_of(*data, TensorId::kOut, 1, 3),
                                 one = rows_of(*plain, TensorId::kOut, 1, 3);
        for (size_t n = 0; n < got.size(); ++n) EXPECT_NEAR(got[n], one[n], 1e-5) << option;
    };
    expect_near("softcap1e6", [](const foveal_forward_args&) {});
    expect_near("alibi", [](const foveal_forward_args& args) {
        std::fill_n(static_cast<float*>(args.alibi_slopes.data), 4, 0.0f);
    });
    expect_near("bias_f32=11", [](const foveal_forward_args& args) {
        std::fill_n(static_cast<float*>(args.bias.data), 70 * 130, -3.0f);
    });
}

// The causal window, written as a mask and as a bias.
TEST(ScoreOptions_1_2, AMaskAndABiasOfMinusInfinityHideWhatAWindowHides) {
    const std::string text = "b2 sq70 sk130 hq4 hk2 d24 f32 lse";
    const auto causal = run(text + " causal");
    const auto masked = on_cpu(text + " mask=11"), biased = on_cpu(text + " bias=11");
    for (int64_t i = 0; i < 70; ++i) {
        for (int64_t j = 0; j < 130; ++j) {
            const bool visible = j <= i + 60;
            static_cast<uint8_t*>(masked->args().mask.data)[i * 130 + j] = visible;
            static_cast<float*>(biased->args().bias.data)[i * 130 + j] = visible ? 0.0f : -HUGE_VALF;
        }
    }
    ASSERT_EQ(foveal_forward(&masked->args(), nullptr), FOVEAL_OK);
    ASSERT_EQ(foveal_forward(&biased->args(), nullptr), FOVEAL_OK);
    for (int64_t head = 0; head < 4; ++head) {
        const std::vector<float> expected = rows_of(*causal, TensorId::kOut, 1, head);
        EXPECT_TRUE(same_bits(rows_of(*masked, TensorId::kOut, 1, head), expected));
        const std::vector<float> got = rows_of(*biased, TensorId::kOut, 1, head);
        for (size_t n = 0; n < got.size(); ++n) EXPECT_NEAR(got[n], expected[n], 1e-5);
    }
}

TEST(ScoreOptions_1_2, SoftcapBoundsTheScores) {
    const auto data = run("b1 sq50 sk60 h2 d24 f32 sd1e4 softcap2 lse");
    for (const float lse : rows_of(*data, TensorId::kLse, 0, 1)) {
        EXPECT_LE(lse, 2 + std::log(60.0f) + 1e-5f);
        EXPECT_GE(lse, -2 + std::log(60.0f) - 1e-5f);
    }
}

TEST(ScoreOptions_1_2, AnyFiniteScaleAndCap) {
    for (const std::string scale :
         {"scale0", "scale-0.3", "scale2", "scale1e-5 sd1", "scale1e30 sd1", "scale1e-30 sd1"}) {
        for (const std::string option :
             {"softcap3", "softcap1e-20", "softcap1e30", "alibi", "bias=11", "sinks", "mask=11"})
            expect_right("b2 sq33 sk70 h4 d24 f32 lse causal " + scale + " " + option);
    }
}

// Finite wherever the oracle is.
TEST(ScoreOptions_1_2, Extremes) {
    const std::vector<std::string> options = {"",
                                              "softcap30",
                                              "alibi",
                                              "sinks",
                                              "sinks100",
                                              "sinks-100",
                                              "bias=11 bias_inf",
                                              "mask=11",
                                              "softcap1e4 alibi sinks20 bias_f32=bh bias_inf mask=1h"};
    for (const std::string& option : options) {
        for (const std::string type : {"f32", "bf16"}) {
            for (const std::string logits : {"sd1e30", "sink1e30@mid", "sink-1e30@0 sink1e30@last", "flat",
                                             "flat sd1e30", "grow-1e30", "grow100 vmax", "sd3 vmax"}) {
                expect_right("sq70 sk130 h2 d24 lse " + type + " " + option + " " + logits);
                expect_right("sq130 sk70 h2 d24 lse causal " + type + " " + option + " " + logits);
            }
        }
        for (const std::string logits : {"sd1e4", "sink1e4@mid", "flat", "flat sd1e4", "grow100 vmax", "sd3 vmax"})
            expect_right("sq70 sk130 h2 d24 f16 lse " + option + " " + logits);
    }
}

TEST(ScoreOptions_1_2, F16InputsAtTheEndOfTheRange) {
    for (const std::string option : {"full", "causal", "softcap30", "alibi sinks", "bias=11 bias_inf", "mask=11"}) {
        // In 4 channels the sum of the products, multiples of 2047^2, is still exact.
        const auto data = on_cpu("sq40 sk130 h2 d4 dv64 f16 lse " + option);
        constexpr uint16_t kLargest = 0x7BFF;  // 65504
        for (const foveal_tensor* tensor : {&data->args().q, &data->args().k, &data->args().v}) {
            auto* halves = static_cast<uint16_t*>(tensor->data);
            for (int64_t n = 0; n < tensor->shape[1] * tensor->stride[1]; ++n)
                halves[n] = static_cast<uint16_t>(kLargest | (halves[n] & 0x8000));  // the signs stay
        }
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
        const Verdict verdict = verify(*data);
        EXPECT_TRUE(verdict.pass) << option << "\n" << verdict.failure;
    }
}

// ---- 1.4 Empty

TEST(ScoreOptions_1_4, RowsThatSeeNoKey) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        for (const std::string option : {"", " softcap3", " alibi", " bias=11", " softcap3 alibi bias_f32=bh"}) {
            const auto data = on_cpu("b2 sq40 sk130 hq4 hk2 d24 lse mask=11 " + type + option);
            std::fill_n(static_cast<uint8_t*>(data->args().mask.data) + 5 * 130, 20 * 130, uint8_t{0});
            ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
            expect_empty_rows(*data, 1, 5, 25);
        }
    }
    const auto data = on_cpu("b2 sq40 sk130 hq4 hk2 d24 lse bias=11 f32");
    std::fill_n(static_cast<float*>(data->args().bias.data) + 5 * 130, 20 * 130, -HUGE_VALF);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    expect_empty_rows(*data, 1, 5, 25);
}

TEST(ScoreOptions_1_4, WithASinkTheLogSumExpIsTheSink) {
    for (const std::string text :
         {"b2 sq300 sk7 hq4 hk2 d24 causal lse f32", "b2 sq70 sk0 hq4 hk2 d24 lse bf16",
          "b2 sq5 sk9 hq4 hk2 d24 lse f16 used_k=9,0", "varlen qlens=3,50 klens=9,0 hq4 hk2 d24 lse f32",
          "b2 sq70 sk9 hq4 hk2 d24 lse f32 chunk5 topleft"}) {
        for (const std::string option : {"", " softcap3 alibi"}) {
            const auto data = on_cpu(text + " sinks" + option);
            std::fill_n(static_cast<float*>(data->args().sinks.data), 4, 0.7f);
            ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
            const int64_t rows = data->the_case().used_q(1);
            const bool top_left = data->the_case().top_left;
            const int64_t seen = data->the_case().used_k(1) == 0 ? 0 : top_left ? 10 : 7;
            expect_empty_rows(*data, 1, top_left ? seen : 0, top_left ? rows : rows - seen, 0.7f);
        }
    }
}

TEST(ScoreOptions_1_4, AnyMixOfZeroLengths) {
    for (const std::string shape : {"b0 s5", "b3 sq0 sk5", "b3 sq5 sk0", "b3 s0"}) {
        for (const std::string& option : every_option()) expect_right(shape + " hq6 hk2 d24 f32 lse " + option);
    }
    for (const std::string shape : {"varlen qlens= klens=", "varlen qlens=0,3,0,1 klens=1,0,0,4"}) {
        for (const std::string option : {"softcap3", "alibi_b", "sinks", "chunk2", "softcap3 alibi sinks chunk2"})
            expect_right(shape + " hq6 hk2 d24 f32 lse " + option);
    }
}

// ---- 1.6 Isolation

TEST(ScoreOptions_1_6, ValuesPastTheUsedLengthsNeverMatter) {
    const std::string text = "b3 sq70 sk200 hq4 hk2 d24 f32 lse pad bias=b1 mask=bh used_q=70,1,33 used_k=129,0,200";
    const auto with_poison = run(text);  // NaN in the bias, true in the mask
    for (const auto& [bias, visible] : {std::pair<float, uint8_t>{0.0f, 0}, {HUGE_VALF, 1}, {-HUGE_VALF, 0}}) {
        const auto data = on_cpu(text);
        const foveal_forward_args& args = data->args();
        for (int64_t n = 0; n < 3; ++n) {
            for (int64_t i = 0; i < 70; ++i) {
                const bool row_used = i < data->the_case().used_q(n);
                for (int64_t j = row_used ? data->the_case().used_k(n) : 0; j < 200; ++j) {
                    static_cast<float*>(args.bias.data)[n * args.bias.stride[0] + i * args.bias.stride[2] + j] = bias;
                    static_cast<uint8_t*>(args.mask.data)[n * args.mask.stride[0] + i * args.mask.stride[2] + j] =
                        visible;
                }
            }
        }
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK);
        EXPECT_EQ(data->bytes(TensorId::kOut), with_poison->bytes(TensorId::kOut)) << bias;
        EXPECT_EQ(data->bytes(TensorId::kLse), with_poison->bytes(TensorId::kLse)) << bias;
    }
}

// A bias of NaN reaches its own row, and not through a window, a mask or a chunk.
TEST(ScoreOptions_1_6, NaNInTheBiasReachesTheRowThatSeesIt) {
    for (const std::string hiding : {"full", "causal", "chunk50", "mask=11"}) {
        const auto data = on_cpu("b1 s100 h1 d24 f32 lse bias=11 " + hiding);
        constexpr int64_t kRow = 10, kKey = 70;
        static_cast<float*>(data->args().bias.data)[kRow * 100 + kKey] = NAN;
        if (hiding == "mask=11") static_cast<uint8_t*>(data->args().mask.data)[kRow * 100 + kKey] = 0;
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        const std::vector<float> lse = rows_of(*data, TensorId::kLse, 0, 0), out = rows_of(*data, TensorId::kOut, 0, 0);
        for (size_t i = 0; i < 100; ++i) {
            EXPECT_EQ(std::isnan(lse[i]), hiding == "full" && i == kRow) << hiding << " " << i;
            EXPECT_EQ(std::isnan(out[i * 24]), hiding == "full" && i == kRow) << hiding << " " << i;
        }
    }
}

// A key that is not seen is not seen, whatever its score would be.
TEST(ScoreOptions_1_6, HiddenScoresNeverMatter) {
    for (const std::string option : {"mask=11", "bias=11", "mask=11 softcap3 alibi"}) {
        const auto clean = on_cpu("b1 sq40 sk100 h1 d24 f32 lse " + option);
        const auto data = on_cpu("b1 sq40 sk100 h1 d24 f32 lse " + option);
        for (const CaseData* each : {clean.get(), data.get()}) {
            for (int64_t i = 0; i < 40; ++i) {
                if (each->args().mask.rank != 0) static_cast<uint8_t*>(each->args().mask.data)[i * 100 + 70] = 0;
                if (each->args().bias.rank != 0) static_cast<float*>(each->args().bias.data)[i * 100 + 70] = -HUGE_VALF;
            }
        }
        overwrite_rows(data->args().k, 0, 70, 71, NAN);
        ASSERT_EQ(foveal_forward(&clean->args(), nullptr), FOVEAL_OK);
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        EXPECT_EQ(data->bytes(TensorId::kOut), clean->bytes(TensorId::kOut)) << option;
        EXPECT_EQ(data->bytes(TensorId::kLse), clean->bytes(TensorId::kLse)) << option;
    }
}

// ---- 1.7 Repeatability

TEST(ScoreOptions_1_7, TheSameBitsOnEveryRunAndInEveryBatch) {
    for (const std::string& option : every_option()) {
        const std::string tail = " hq6 hk2 d40 bf16 causal lse " + option;
        const auto one = run("b1 sq131 sk203" + tail), again = run("b1 sq131 sk203" + tail);
        EXPECT_EQ(one->bytes(TensorId::kOut), again->bytes(TensorId::kOut)) << option;
        const auto nine = run("b9 sq131 sk203" + tail);
        for (int64_t head = 0; head < 6; ++head) {
            for (const TensorId id : {TensorId::kOut, TensorId::kLse})
                EXPECT_TRUE(same_bits(rows_of(*one, id, 0, head), rows_of(*nine, id, 0, head))) << tail;
        }
    }
}

// ---- 1.8 Resources

TEST(ScoreOptions_1_8, AKeptPlanIsForItsOptionsAlone) {
    const std::string text = "b2 sq70 sk90 hq4 hk2 d24 f32 lse softcap3 alibi sinks bias=b1 mask=1h chunk50";
    const auto expected = run(text);
    const auto data = on_cpu(text);
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&data->args(), -1, &plan), FOVEAL_OK) << foveal_last_error();
    std::string description(4096, '\0');
    ASSERT_EQ(foveal_plan_describe(plan, description.data(), description.size(), nullptr), FOVEAL_OK);
    for (const char* word : {"softcap 3", "alibi", "bias f32", "sinks", "boolean mask", "chunks of 50"})
        EXPECT_NE(description.find(word), std::string::npos) << word << " is missing in:\n" << description;
    const std::vector<std::function<void(foveal_forward_args&)>> changes = {
        [](auto& args) { args.softcap = 4; },    [](auto& args) { args.alibi_slopes.rank = 0; },
        [](auto& args) { args.sinks.rank = 0; }, [](auto& args) { args.bias.rank = 0; },
        [](auto& args) { args.mask.rank = 0; },  [](auto& args) { args.chunk = 51; },
    };
    for (const auto& change : changes) {
        foveal_forward_args args = data->args();
        change(args);
        EXPECT_EQ(foveal_plan_launch(plan, &args, nullptr), FOVEAL_INVALID_ARGUMENT);
    }
    EXPECT_EQ(foveal_plan_launch(plan, &data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    foveal_plan_destroy(plan);
    EXPECT_EQ(data->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
}

}  // namespace
}  // namespace foveal_testing
