// Options of the scores that are refused, by argument and value (contract 1.9).
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.9 Refuse, never ignore

struct Refusal {
    const char* what;
    std::function<void(foveal_forward_args&)> change;
    std::vector<std::string> words;
};

const char* const kWithEverything = "b2 sq7 sk9 hq4 hk2 d8 bf16 lse softcap3 alibi_b sinks bias=bh mask=bh chunk4";

void expect_refusals(const std::vector<Refusal>& refusals) {
    for (const Refusal& refusal : refusals) {
        const auto data = on_cpu(kWithEverything);
        foveal_forward_args args = data->args();
        ASSERT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
        refusal.change(args);
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << refusal.what;
        for (const std::string& word : refusal.words) {
            EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
                << word << " in the refusal of " << refusal.what << ": " << foveal_last_error();
        }
        const OutputScan scan = data->scan(TensorId::kOut);
        EXPECT_EQ(scan.poison, scan.elements) << "a refused call wrote: " << refusal.what;
    }
}

TEST(ScoreOptions_1_9, NumbersOutOfRange) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    expect_refusals({
        {"a negative softcap", [](auto& a) { a.softcap = -1; }, {"softcap", "-1"}},
        {"an infinite softcap", [](auto& a) { a.softcap = HUGE_VALF; }, {"softcap", "inf"}},
        {"a softcap of NaN", [nan](auto& a) { a.softcap = nan; }, {"softcap", "nan"}},
        {"a negative chunk", [](auto& a) { a.chunk = -3; }, {"chunk", "-3"}},
        {"reserved", [](auto& a) { a.reserved = 1; }, {"reserved"}},
    });
}

TEST(ScoreOptions_1_9, SlopesAndSinks) {
    expect_refusals({
        {"slopes in bf16", [](auto& a) { a.alibi_slopes.dtype = FOVEAL_BF16; }, {"alibi_slopes.dtype", "bf16", "f32"}},
        {"slopes of rank 3", [](auto& a) { a.alibi_slopes.rank = 3; }, {"alibi_slopes.rank", "3"}},
        {"slopes of 3 heads", [](auto& a) { a.alibi_slopes.shape[1] = 3; }, {"alibi_slopes.shape[1]", "3", "4"}},
        {"slopes of 5 sequences", [](auto& a) { a.alibi_slopes.shape[0] = 5; }, {"alibi_slopes.shape[0]", "5", "2"}},
        {"slopes with gaps", [](auto& a) { a.alibi_slopes.stride[1] = 2; }, {"alibi_slopes.stride[1]", "2"}},
        {"slopes at NULL", [](auto& a) { a.alibi_slopes.data = nullptr; }, {"alibi_slopes.data", "NULL"}},
        {"sinks in f16", [](auto& a) { a.sinks.dtype = FOVEAL_F16; }, {"sinks.dtype", "f16", "f32"}},
        {"sinks of each sequence", [](auto& a) { a.sinks = a.alibi_slopes; }, {"sinks.rank", "2"}},
        {"sinks of 2 heads", [](auto& a) { a.sinks.shape[0] = 2; }, {"sinks.shape[0]", "2", "4"}},
        {"sinks at NULL", [](auto& a) { a.sinks.data = nullptr; }, {"sinks.data", "NULL"}},
    });
}

TEST(ScoreOptions_1_9, BiasAndMask) {
    expect_refusals({
        {"a bias of integers", [](auto& a) { a.bias.dtype = FOVEAL_I32; }, {"bias.dtype", "i32", "f32"}},
        {"a bias in f16 beside bf16", [](auto& a) { a.bias.dtype = FOVEAL_F16; }, {"bias.dtype", "f16", "bf16"}},
        {"a bias of rank 3", [](auto& a) { a.bias.rank = 3; }, {"bias.shape[0]", "2", "q.shape[2] (or 1)", "4"}},
        {"a bias of rank 5", [](auto& a) { a.bias.rank = 5; }, {"bias.rank", "5"}},
        {"a bias of 3 sequences", [](auto& a) { a.bias.shape[0] = 3; }, {"bias.shape[0]", "3", "2"}},
        {"a bias of 2 heads", [](auto& a) { a.bias.shape[1] = 2; }, {"bias.shape[1]", "2", "4"}},
        {"a bias of 8 rows", [](auto& a) { a.bias.shape[2] = 8; }, {"bias.shape[2]", "8", "7"}},
        {"a bias of 8 keys", [](auto& a) { a.bias.shape[3] = 8; }, {"bias.shape[3]", "8", "9"}},
        {"a bias with gaps", [](auto& a) { a.bias.stride[3] = 2; }, {"bias.stride[3]", "2"}},
        {"a bias of backward rows", [](auto& a) { a.bias.stride[2] = -9; }, {"bias.stride[2]", "-9"}},
        {"a bias at NULL", [](auto& a) { a.bias.data = nullptr; }, {"bias.data", "NULL"}},
        {"a bias astray",
         [](auto& a) { a.bias.data = static_cast<std::byte*>(a.bias.data) + 1; },
         {"bias.data", "aligned", "2"}},
        {"a mask of floats", [](auto& a) { a.mask.dtype = FOVEAL_F32; }, {"mask.dtype", "f32", "bool"}},
        {"a mask of 3 heads", [](auto& a) { a.mask.shape[1] = 3; }, {"mask.shape[1]", "3", "4"}},
        {"a mask of 2 keys", [](auto& a) { a.mask.shape[3] = 2; }, {"mask.shape[3]", "2", "9"}},
        {"a mask with gaps", [](auto& a) { a.mask.stride[3] = 2; }, {"mask.stride[3]", "2"}},
        {"a mask at NULL", [](auto& a) { a.mask.data = nullptr; }, {"mask.data", "NULL"}},
    });
}

TEST(ScoreOptions_1_9, BiasAndMaskNeedTheDenseForm) {
    const auto data = on_cpu("varlen qlens=3,4 klens=5,6 h2 d8 f32");
    const auto dense = on_cpu("b1 sq7 sk11 h2 d8 f32 bias=11 mask=11");
    foveal_forward_args args = data->args();
    args.bias = dense->args().bias;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("bias is present"), std::string::npos) << foveal_last_error();
    EXPECT_NE(std::string(foveal_last_error()).find("seqused_k"), std::string::npos) << foveal_last_error();
    args = data->args();
    args.mask = dense->args().mask;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("mask is present"), std::string::npos) << foveal_last_error();
}

}  // namespace
}  // namespace foveal_testing
