// Decoding over keys in e4m3: bit for bit what the same kernel makes of dequantised ones, however it is split, and
// right by the oracle (the suite corner has more of that).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/sm90/decoder.hpp"
#include "tests/sm90/dequantised_gpu.hpp"
#include "tests/support/draw.hpp"

namespace foveal_testing {
namespace {

// Of the kernel with options, which slopes of zero ask for: so do keys in e4m3 where there is no other (support.hpp).
std::vector<std::byte> decoded_with_options(CaseData& data) {
    foveal_forward_args args = data.args();
    const int64_t heads = data.the_case().heads_q;
    const DeviceBuffer slopes(std::vector<float>(static_cast<size_t>(heads), 0.0f));
    args.alibi_slopes.data = slopes.as<>();
    args.alibi_slopes.dtype = FOVEAL_F32;
    args.alibi_slopes.rank = 1;
    args.alibi_slopes.shape[0] = heads;
    args.alibi_slopes.stride[0] = 1;
    const ForwardProblem problem = foveal::validate(args);
    EXPECT_EQ(foveal::sm90::decode_choice_of(problem).variant, foveal::sm90::DecodeVariant::options);
    const Decoder decoder(problem, kAllSms);
    data.poison_outputs();
    decoder.launch(foveal::pointers_of(args));
    synchronize();
    return outputs(data);
}

bool has_options(CaseData& data) {
    return foveal::sm90::decode_choice_of(foveal::validate(data.args())).variant ==
           foveal::sm90::DecodeVariant::options;
}

void expect_as_dequantised(const std::string& text) {
    const WithDequantised both = with_dequantised(text);
    const std::vector<std::byte> expected = has_options(*both.e4m3) && !has_options(*both.plain)
                                                ? decoded_with_options(*both.plain)
                                                : decoded(*both.plain, kAllSms);
    for (const int32_t sms : {kAllSms, 7, 0})
        EXPECT_TRUE(same_bytes(decoded(*both.e4m3, sms), expected)) << text << " on " << sms << " SMs";
}

// Lengths around the ends of pages, blocks and leaves.
std::string draw_case(uint32_t seed) {
    Draw draw(seed);
    const auto page = draw.of<int64_t>({0, 1, 8, 16, 17, 64, 64, 128, 257});
    const auto most = draw.of<int64_t>({1, 64, 200, 517, 1100, 3000});
    std::vector<int64_t> keys;
    for (int i = 0; i < 3; ++i)
        keys.push_back(std::min(most, draw.of<int64_t>({0, 1, page + 1, 63, 64, 65, 129, 200, 517, 1024, 3000})));
    const auto rows = draw.of<int64_t>({1, 1, 1, 2, 3, 4, 8, 16});
    std::string text = "b3 sq" + std::to_string(rows) + " sk" + std::to_string(most) + list("used_k", keys);
    text += draw.of<std::string>({" h1", " hq4 hk2", " hq8 hk1", " hq8 hk2", " hq16 hk1", " h3"});
    text += draw.of<std::string>({" d64", " d128", " d128", " d256", " d80", " d32 dv48", " d96 dv128"});
    text += draw.of<std::string>({" bf16", " bf16", " f16"});
    text += " kv_e4m3" + draw.of<std::string>({"", " descale", " descale1", " descale_rows"});
    text += draw.of<std::string>({" full", " causal", " causal", " left40 causal", " left9 right3", " left700"});
    if (draw.one_in(5)) text += draw.of<std::string>({" softcap20", " softcap200"});
    if (draw.one_in(5)) text += draw.of<std::string>({" alibi", " alibi_b"});
    if (draw.one_in(4)) text += " sinks";
    if (rows > 1 && draw.one_in(4)) text += " tree";
    if (!draw.one_in(4)) text += " lse";
    if (draw.one_in(6)) text += " vnan60";
    if (draw.one_in(3)) text += " pad";
    if (page > 0) text += " page" + std::to_string(page) + draw.of<std::string>({"", " order7", " csr"});
    return text;
}

class DrawnE4m3Decodes : public DecodeGpu, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(DrawnE4m3Decodes, AreAsDequantised) {
    constexpr uint32_t kCasesOfRun = 25;
    for (uint32_t seed = GetParam() * kCasesOfRun; seed < (GetParam() + 1) * kCasesOfRun && !HasFailure(); ++seed) {
        const std::string text = draw_case(seed);
        SCOPED_TRACE("seed " + std::to_string(seed));
        if (!foveal::sm90::decodes(foveal::validate(on_gpu(text)->args()))) continue;  // too many columns
        expect_as_dequantised(text);
    }
}

INSTANTIATE_TEST_SUITE_P(Seeds, DrawnE4m3Decodes, ::testing::Range(0u, 10u));

TEST_F(DecodeGpu, LongSequencesInE4m3) {
    for (const char* text : {"b1 sq1 sk20000 hq8 hk2 d128 bf16 kv_e4m3 descale lse page64",
                             "b1 sq1 sk33000 hq4 hk1 d64 f16 kv_e4m3 descale lse page16",
                             "b2 sq1 sk9000 used_k=9000,7777 hq2 hk2 d256 bf16 kv_e4m3 descale_rows lse page1",
                             "b2 sq4 sk9000 used_k=9000,4097 hq4 hk1 d128 bf16 kv_e4m3 descale_rows causal lse page64"})
        expect_as_dequantised(text);
}

}  // namespace
}  // namespace foveal_testing
