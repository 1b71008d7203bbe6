// Gradients (contract 1.13), option by option, against the float64 oracle.
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/backward_fixture.hpp"
#include "tests/support/number_formats.hpp"

namespace foveal_testing {
namespace {

class Contract_1_13 : public BackwardTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, Contract_1_13, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, Contract_1_13, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(Contract_1_13, DenseInEveryType) {
    for (const std::string& type : types())
        for (const std::string shape :
             {"b2 s130 hq4 hk2 d64", "b1 sq113 sk203 h3 d128", "b1 sq300 sk77 hq6 hk1 d64 dv128", "b2 sq1 sk300 h2 d64",
              "b1 sq300 sk1 h2 d128", "b1 s600 hq2 hk1 d128", "b1 s70 h2 d256", "b1 s70 h2 d192 dv128"})
            for (const std::string mask : {" full", " causal", " causal topleft dlse"})
                expect_right(shape + type + mask);
}

TEST_P(Contract_1_13, LengthsAndForms) {
    for (const std::string& type : types())
        for (const std::string form :
             {"varlen qlens=5,0,130,70 klens=64,9,300,1 hq4 hk2", "varlen qlens=0,0 klens=0,5 h2",
              "varlen qlens=7,9 klens=0,0 h2", "b3 sq130 sk201 hq4 hk2 used_q=130,1,77 used_k=201,0,130",
              "b2 sq0 sk70 h2", "b2 sq70 sk0 h2", "b0 s64 h2", "varlen qlens=60,130 sk100 used_k=100,37 h2",
              "varlen qlens=300,200 klens=300,200 hq8 hk2 used_q=290,0 used_k=300,77"})
            for (const std::string mask : {" full dlse", " causal", " left20 right3"})
                expect_right(form + " d64" + type + mask);
}

TEST_P(Contract_1_13, Masks) {
    for (const std::string& type : types())
        for (const std::string mask :
             {"left40 right0", "left0 right0", "right9", "left64 topleft", "causal chunk60", "chunk64 left100",
              "causal left129", "mask=bh", "mask=b11k causal", "mask=11q1", "bias_inf bias=bh", "qoff=17,-40 causal"})
            expect_right("b2 sq140 sk210 hq4 hk2 d64 " + mask + type + " dlse");
}

TEST_P(Contract_1_13, ScoreOptions) {
    for (const std::string& type : types())
        for (const std::string option :
             {"softcap2", "softcap30 sd10", "alibi", "alibi_b causal", "sinks", "sinks1 causal left30", "bias=bh",
              "bias=b1 causal", "bias=1h", "bias=11", "bias_f32=bh causal", "bias=b11k", "bias=11q1", "bias=1111",
              "bias=1h1k dbias_f32", "bias=bh dbias_f32", "bias_f32=11q1",
              "softcap5 alibi sinks bias=1h mask=b1 causal dlse", "softcap5 alibi_b sinks bias=11 chunk50 dlse"})
            expect_right("b2 sq140 sk210 hq4 hk2 d64 " + option + type);
}

// Where there is nothing to sum what is asked is 0, or has no elements.
TEST_P(Contract_1_13, OptionsOfNothing) {
    for (const std::string& type : types())
        for (const std::string problem :
             {"b2 sq70 sk0 h2 d64 bias=bh alibi", "b2 sq70 sk0 h2 d64 bias=11q1 alibi_b",
              "b2 sq0 sk70 h2 d64 bias=b11k alibi_b", "b2 sq0 sk70 h2 d256 bias=bh", "b0 s64 h2 d64 bias=1h alibi",
              "b3 sq130 sk201 h2 d64 used_q=130,0,77 used_k=201,9,0 bias=bh alibi_b"})
            expect_right(problem + type);
}

// d of 129 to 192 with values of up to 128 have kernels of their own on sm90; of wider values those of d 256.
TEST_P(Contract_1_13, WideKeysWithNarrowValues) {
    for (const std::string& type : types())
        for (const std::string d :
             {" d192 dv128", " d160 dv96", " d136 dv128", " d192 dv64", " d136 dv8", " d192 dv136"})
            for (const std::string shape :
                 {"b2 s130 hq4 hk2 dlse", "b1 sq300 sk77 hq6 hk1 causal", "b1 sq200 sk333 h2 causal sinks",
                  "b1 s260 hq2 hk1 left70 right9", "b2 sq1 sk300 h2", "b2 sq70 sk0 h2",
                  "varlen qlens=5,0,130,70 klens=64,9,300,1 hq4 hk2 causal", "b1 s200 h2 causal dropout0.2",
                  "varlen qlens=300,200 klens=300,200 hq8 hk2 used_q=290,0 used_k=300,77 left20 right3 sinks",
                  "b3 sq130 sk201 hq4 hk2 used_q=130,1,77 used_k=201,0,130"})
                expect_right(shape + d + type);
}

TEST_P(Contract_1_13, WideHeadsWithOptions) {
    for (const std::string& type : types())
        for (const std::string d : {" d192 dv128", " d256", " d40 dv512", " d512"})
            for (const std::string option :
                 {"softcap5 causal", "alibi_b left50", "bias=1h mask=b1 dlse", "chunk50 sinks", "scale-0.2"})
                expect_right("b1 sq70 sk130 hq2 hk1 " + option + d + type);
}

TEST_P(Contract_1_13, ScalesOfEitherSign) {
    for (const std::string& type : types())
        for (const std::string scale : {"scale0", "scale-0.2", "scale1.5", "scale-0.2 mask=bh causal", "scale0 alibi"})
            expect_right("b1 sq100 sk130 h2 d64 " + scale + type);
}

TEST_P(Contract_1_13, Layouts) {
    for (const std::string& type : types())
        for (const std::string layout : {"pad", "bhsd", "qkv", "qkv pad", "pad bhsd"})
            for (const std::string form : {"b2 s130 hq4 hk2 d64", "varlen qlens=70,130 klens=70,130 hq4 hk2 d64"})
                expect_right(form + type + " causal dlse " + layout);
}

// For summing: rounded, they are what is written in the inputs' type.
TEST_P(Contract_1_13, GradientsInF32) {
    if (on_gpu()) GTEST_SKIP() << "refused by name: sm90/backward_support_test.cpp";
    for (const std::string type : {" bf16", " f16"}) {
        for (const std::string problem :
             {"b2 s130 hq4 hk2 d40 dv64 causal", "varlen qlens=5,0,130 klens=64,9,300 hq4 hk1 d64 alibi sinks dlse"}) {
            const auto narrow = run(problem + type);
            const Case& c = narrow->the_case().forward;
            foveal_backward_args args = narrow->args();
            GradientTensor dq(c, TensorId::kQ, backend(), FOVEAL_F32), dk(c, TensorId::kK, backend(), FOVEAL_F32),
                dv(c, TensorId::kV, backend(), FOVEAL_F32);
            args.dq = dq.view();
            args.dk = dk.view();
            args.dv = dv.view();
            ASSERT_EQ(foveal_backward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
            for (const auto& [wide, rounded] : {std::pair{&dq, &narrow->dq}, {&dk, &narrow->dk}, {&dv, &narrow->dv}}) {
                const std::vector<float> got = wide->values(), expected = rounded->values();
                ASSERT_EQ(got.size(), expected.size());
                for (size_t i = 0; i < got.size(); ++i)
                    ASSERT_EQ(round_to(c.dtype, got[i]), expected[i]) << problem << type << ", element " << i;
                EXPECT_TRUE(wide->surroundings_untouched());
            }
        }
    }
}

TEST_P(Contract_1_13, PeakyAndFlatRows) {
    for (const std::string& type : types())
        for (const std::string rows : {"sd0.3", "sd10", "sd30", "sink60@0", "grow2", "flat", "sd30 causal sinks"})
            expect_right("b1 s300 hq4 hk2 d64 " + rows + type);
}

TEST_P(Contract_1_13, HeadDimensions) {
    for (const std::string d : {"d8", "d40", "d96", "d104", "d160", "d224", "d320", "d512"})
        expect_right("b1 sq70 sk130 hq2 hk1 bf16 causal " + d);
    if (on_gpu()) return;
    for (const std::string d : {"d5", "d7", "d33 dv5", "d129 dv17", "d600"})
        for (const std::string& type : types()) expect_right("b1 sq70 sk130 hq2 hk1 causal " + d + type);
}

}  // namespace
}  // namespace foveal_testing
