// The sm90 forward over e4m3 (contract 1.14). The judge is that of all results (contract 1.10), its reference the
// textbook in this precision: P rounded to e4m3, with a relative error of up to 2^-4 each (tests/support/oracle.hpp).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

class E4m3 : public Gpu {};

void expect_right(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kSm90);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
}

TEST_F(E4m3, FormsAndMasks) {
    for (const std::string shape :
         {"b2 sq200 sk330 hq4 hk2", "b1 s128 h1", "b3 sq1 sk700 hq8 hk1", "b2 sq129 sk127 hq6 hk2", "b2 s1000 h3",
          "b2 sq40 sk90 h2 used_q=40,7 used_k=90,11", "b3 sq9 sk300 hq8 hk2 used_k=0,300,5", "b2 sq5 sk0 h1",
          "varlen qlens=5,0,70,300 klens=64,3,7,130 hq4 hk2", "varlen qlens=200,0,7,513 klens=256,7,0,700 hq8 hk2",
          "varlen qlens=1,1,1,3 klens=300,1,77,1000 hq8 hk1"})
        for (const std::string dims : {" d128", " d64", " d96 dv32", " d16 dv128", " d80"})
            for (const std::string option : {" full", " causal", " left70 right3 lse", " causal topleft lse",
                                             " chunk100 causal", " left200 causal sinks", " sinks2 lse"})
                for (const std::string type : {" e4m3", " e4m3 out_f16 descale"})
                    expect_right(shape + dims + option + type);
}

TEST_F(E4m3, LayoutsAndDescales) {
    for (const std::string option :
         {"causal", "bhsd lse", "qkv causal lse", "bhsd left9 used_q=7,130,1 used_k=9,100,130"})
        for (const std::string descale : {"", " descale", " descale1"})
            expect_right("b3 s130 hq4 hk2 d64 e4m3 " + option + descale);
}

// Scores that outgrow a row's reference again and again, and such as no fma can shift.
TEST_F(E4m3, LargeLogits) {
    for (const std::string shape : {"b1 sq300 sk900 hq4 hk2 d128", "b1 sq300 sk900 hq4 hk2 d64"})
        for (const std::string logits :
             {"sd3", "sd10", "sd30", "grow2", "sink60@0", "sink12@mid", "sink60@last", "flat"})
            for (const std::string option : {" full lse", " causal"}) expect_right(shape + " e4m3 " + logits + option);
    for (const std::string option : {" full", " causal lse"})
        for (const std::string scale : {"scale1e4", "scale0", "scale-0.1", "scale1e-30"})
            expect_right("b1 sq140 sk300 h2 d64 e4m3 " + scale + option);
}

TEST_F(E4m3, ManyTiles) {
    for (const std::string text :
         {"b9 sq700 sk700 hq16 hk4 d128 e4m3 causal lse", "b40 s260 h16 d64 e4m3 full", "b40 sq60 sk900 h16 d128 e4m3",
          "varlen qlens=4000,1,0,2500,3300,130 klens=4100,2000,300,2500,1700,3000 hq12 hk4 d128 e4m3 causal",
          "b1 s5000 hq8 hk2 d128 e4m3 left1000 right100"})
        expect_right(text);
}

TEST_F(E4m3, NaNInVReachesWhatItMay) {
    for (const std::string option : {"full", "causal", "left30 right5"})
        expect_right("b2 sq200 sk330 h2 d128 e4m3 vnan77 " + option);
}

// The same bits in every run, and alone as in a batch.
TEST_F(E4m3, BitsDoNotDependOnRunOrBatch) {
    for (const std::string tail : {"sq300 sk500 hq4 hk2 d128 e4m3 causal lse", "sq70 sk900 hq8 hk2 d64 e4m3 lse",
                                   "sq9 sk2000 hq8 hk1 d128 e4m3 out_f16 sd3"}) {
        const auto alone = on_gpu("b1 " + tail), batch = on_gpu("b5 " + tail);
        run(*alone);
        run(*batch);
        const std::vector<std::byte> first = outputs(*batch);
        batch->poison_outputs();
        run(*batch);
        EXPECT_EQ(outputs(*batch), first) << tail;
        alone->synchronize();
        const Case& c = alone->the_case();
        std::vector<float> a(static_cast<size_t>(c.rows_q * c.head_dim_v)), b(a.size());
        for (int64_t head = 0; head < c.heads_q; ++head) {
            alone->read(TensorId::kOut, 0, head, 0, c.rows_q, a.data());
            batch->read(TensorId::kOut, 0, head, 0, c.rows_q, b.data());
            EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << tail << " head " << head;
        }
    }
}

// Contract 1.14: within 1.3 of that at 1k. (An accumulator of the tensor cores would keep 14 bits of a sum of all
// keys.)
TEST_F(E4m3, TheErrorIsFlatInTheNumberOfKeys) {
    double at_1k = 0;
    for (const int64_t keys : {1024, 4096, 16384, 65536, 131072}) {
        const std::string text = "b1 sq128 sk" + std::to_string(keys) + " hq4 hk4 d128 e4m3 out_f16";
        const CheckResult result = check_case(parse_case(text), kSm90);
        EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
        std::printf("s_k %6lld: relative error %.3e, of the reference %.3e\n", static_cast<long long>(keys),
                    result.verdict.norm_error, result.verdict.norm_reference_error);
        if (keys == 1024) at_1k = result.verdict.norm_error;
        EXPECT_GT(result.verdict.norm_error, 0);
        EXPECT_LE(result.verdict.norm_error, 1.3 * at_1k) << text;
    }
}

}  // namespace
}  // namespace foveal_testing
