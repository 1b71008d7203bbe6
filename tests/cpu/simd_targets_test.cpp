// The CPU backend on every SIMD target that this CPU has, not only on the one it would choose: vector lengths from 1 to
// 16, with and without FMA, with and without hardware conversions of f16.
#include "cpu/simd_targets.hpp"
// Highway's headers follow.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <set>
#include <string>
#include <vector>

#include "cpu/tile.hpp"
#include "tests/cpu/each_target.hpp"
#include "tests/support/check.hpp"

namespace foveal_testing {
namespace {

// Every remainder of a vector of queries, of a register block, of a key block; every option of the forward pass.
std::vector<std::string> case_texts() {
    std::vector<std::string> texts;
    for (const std::string dtype : {"f32", "bf16", "f16"}) {
        for (const std::string shape :
             {"d1 h2 s70 causal", "d7 dv3 h2 s131", "d64 hq6 hk2 sq49 sk200 causal lse",
              "d80 h2 sq97 sk65 causal topleft", "d129 dv33 hq5 hk1 sq33 sk128", "d64 h2 sq200 sk140 causal lse",
              "d32 h2 s300 left17 right5 pad", "d16 h1 sq1 sk257 lse", "d8 hq9 hk1 sq1 sk64", "d64 h2 s130 sd10 lse",
              "d64 h2 s200 causal bhsd", "d64 h2 varlen qlens=113,64,0,5 klens=203,64,5,0 causal lse",
              "d32 h2 b2 s100 used_q=7,100 used_k=65,0 lse",
              // Few query rows: parts of the keys, by rows as they lie and in tiles.
              "b2 sq1 sk1100 hq4 hk2 d64 lse", "sq1 sk530 h1 d80 dv40 bhsd lse", "sq4 sk700 h2 d129 dv33 causal lse",
              "sq7 sk600 h1 d20 dv100 left50 right5 lse", "sq16 sk1300 hq8 hk1 d40 causal lse",
              "varlen qlens=1,2,0,5 klens=1030,64,5,0 d64 h2 causal lse"}) {
            texts.push_back(shape + " " + dtype);
        }
    }
    for (const std::string dtype : {"f32", "bf16", "f16"}) {
        for (const std::string options :
             {"softcap3", "alibi_b", "sinks1", "bias=b1", "bias_f32=1h bias_inf", "mask=bh", "chunk70 causal",
              "softcap5 alibi sinks bias=bh bias_inf mask=11 chunk90 left60", "alibi scale-0.5", "mask=1h scale0"}) {
            for (const std::string shape : {"b2 sq67 sk130 hq6 hk2", "b2 sq2 sk600 h2", "sq9 sk600 hq6 hk2"})
                texts.push_back(shape + " d40 dv20 lse " + dtype + " " + options);
        }
    }
    for (const std::string shape :
         {"d64 h2 s150 vmax f32", "d64 h2 s150 vmax bf16", "d64 h2 s320 sink60@mid bf16", "d64 h2 s320 sink20@last f16",
          "d64 h2 s320 grow2 causal bf16", "d64 h2 s150 flat f16"}) {
        texts.push_back(shape);
    }
    return texts;
}

TEST(CpuSimdTargets, EveryTargetMeetsTheTolerance) {
    std::set<std::string> used;
    const int targets = foveal::cpu::for_each_target([&] {
        used.insert(foveal::cpu::simd_target());
        for (const std::string& text : case_texts()) {
            const CheckResult result = check_case(parse_case(text), FOVEAL_BACKEND_CPU);
            EXPECT_TRUE(result.passed()) << text << "\n" << result.message << "\n" << result.verdict.summary();
        }
    });
    EXPECT_EQ(used.size(), static_cast<size_t>(targets)) << "a forced target was not used";
}

}  // namespace
}  // namespace foveal_testing
