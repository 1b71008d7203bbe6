// Prefill over keys in e4m3: bit for bit what the 16-bit kernel with options makes of dequantised ones, in every form
// (the suite corner has them against the oracle).
#include <gtest/gtest.h>

#include <string>

#include "tests/sm90/dequantised_gpu.hpp"
#include "tests/support/watchdog.hpp"

namespace foveal_testing {
namespace {

// Of a head dimension and a type.
class ForwardE4m3 : public Gpu, public ::testing::WithParamInterface<const char*> {
   protected:
    bool is_d512() const { return std::string(GetParam()).find("d512") != std::string::npos; }

    // case_: without its head dimension, types and descales.
    void expect_as_dequantised(const std::string& case_, const std::string& descale) const {
        constexpr double kSeconds = 10;
        // A chunk of all keys asks for the prefill's kernel with options, which is that of keys in e4m3 (support.hpp).
        const auto has = [&](const char* word) { return case_.find(word) != std::string::npos; };
        const std::string text =
            case_ + " " + GetParam() + " kv_e4m3" + descale + (has("chunk") || has("tree") ? "" : " chunk1048576");
        const Watchdog watchdog(kSeconds, text);
        const WithDequantised both = with_dequantised(text);
        run(*both.plain);
        run(*both.e4m3);
        EXPECT_TRUE(same_bytes(outputs(*both.e4m3), outputs(*both.plain))) << text;
    }
};

INSTANTIATE_TEST_SUITE_P(Dims, ForwardE4m3,
                         ::testing::Values("d64 bf16", "d128 bf16", "d256 bf16", "d512 bf16", "d80 dv48 bf16",
                                           "d208 dv128 bf16", "d64 f16", "d128 f16", "d256 f16", "d512 f16"));

TEST_P(ForwardE4m3, Dense) {
    for (const char* form : {"b2 sq200 sk333 used_k=333,65 hq4 hk2 causal", "b1 sq300 sk700 hq4 hk1 lse",
                             "b2 sq33 sk260 hq3 hk3 left40 right9 topleft pad", "b2 sq40 sk90 h2 bhsd lse causal"})
        for (const char* descale : {"", " descale", " descale1", " descale_rows"}) expect_as_dequantised(form, descale);
}

TEST_P(ForwardE4m3, AnyForm) {
    for (const char* form :
         {"b3 sq70 sk300 used_k=300,0,64 hq8 hk1 page16 causal", "b2 sq70 sk300 used_k=300,129 hq3 hk3 page17 csr lse",
          "b2 sq130 sk300 used_k=300,129 hq4 hk2 page1 causal", "b1 sq300 sk700 hq4 hk1 page64 lse causal",
          "b2 sq33 sk260 hq4 hk2 page128 order3 left30", "b2 sq100 sk190 hq4 hk2 qoff=5,-3 causal",
          "b2 sq100 sk190 hq4 hk2 tree causal"})
        for (const char* descale : {" descale", " descale_rows"}) expect_as_dequantised(form, descale);
    if (is_d512()) return;  // sequences of few rows are refused
    for (const char* form : {"varlen qlens=5,0,70,300 klens=64,3,7,330 hq4 hk2 causal", "b2 sq40 klens=256,7 hq4 hk2",
                             "varlen qlens=130,1,40 sk300 used_k=300,9,64 hq4 hk2 page8 softcap200 lse"})
        expect_as_dequantised(form, " descale");
}

TEST_P(ForwardE4m3, EveryOption) {
    for (const char* option :
         {"chunk64 causal", "softcap20 causal", "softcap200 lse", "alibi causal", "alibi_b lse", "sinks causal",
          "bias=bh lse", "bias_f32=1h bias_inf", "mask=b1", "scale-0.1 causal", "sd30 causal", "vnan77 causal"})
        expect_as_dequantised("b2 sq100 sk190 hq4 hk2 " + std::string(option), " descale");
}

}  // namespace
}  // namespace foveal_testing
