// Gradients under dropout (contract 1.13, 1.16): they drop what the forward call dropped.
#include <string>
#include <vector>

#include "tests/contract/backward_fixture.hpp"
#include "tests/contract/dropout_fixture.hpp"

namespace foveal_testing {
namespace {

class BackwardDropout : public BackwardTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, BackwardDropout, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, BackwardDropout, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(BackwardDropout, RightBesideEveryOption) {
    for (const std::string& type : types()) {
        for (const std::string words :
             {"b2 sq113 sk203 hq4 hk2 d64 causal dropout0.1", "b2 s70 h2 d40 dv24 left30 dropout0.5 dlse pad",
              "b3 sq70 sk300 hq4 hk2 d32 used_q=70,0,9 used_k=300,5,130 dropout0.3",
              "b2 s90 hq4 hk2 d16 softcap5 alibi sinks bias_f32=bh mask=b1 dlse dropout0.4",
              "b2 s90 h2 d16 bias=1h dropout0.2", "b1 sq1 sk1 h1 d8 dropout0.5",
              "varlen qlens=5,0,130 klens=64,9,300 hq4 hk2 d64 causal dlse dropout0.1"})
            expect_right(words + type);
    }
}

// Of rows of dout that are those of the identity, dv is the weights, and 0 is where one was dropped.
TEST_P(BackwardDropout, TheWeightsShowTheForwardsMask) {
    if (on_gpu()) GTEST_SKIP() << "SKIPPED: sm90 has no dropout yet";
    for (const std::string type : {"f32", "bf16"}) {
        const std::string text = "b2 sq130 sk200 h3 d16 dv130 dropout0.3 " + type;
        const std::vector<uint8_t> mask = mask_of(parse_case(text));
        for (const int32_t threads : {1, 3}) {
            ASSERT_EQ(foveal_set_num_threads(threads), FOVEAL_OK);
            const auto data = data_of(text);
            make_identity(data->dout.view());
            ASSERT_EQ(data->run(), FOVEAL_OK) << foveal_last_error();
            const std::vector<float> dv = data->dv.values();
            size_t at = 0;
            for (int64_t b = 0; b < 2; ++b)
                for (int64_t head = 0; head < 3; ++head)
                    for (int64_t row = 0; row < 130; ++row)
                        for (int64_t j = 0; j < 200; ++j) {
                            const auto place = RowPlace::of_k(data->the_case().forward, 130, b, head, j) + row;
                            ASSERT_EQ(dv[static_cast<size_t>(place)] != 0, mask[at++] != 0)
                                << b << " " << head << " " << row << " " << j;
                        }
        }
    }
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
}

TEST_P(BackwardDropout, TheStateIsReadAlone) {
    if (on_gpu()) GTEST_SKIP() << "SKIPPED: sm90 has no dropout yet";
    const auto data = data_of("b1 s40 h2 d16 f32 dropout0.5");
    const foveal_backward_args given = data->args();
    const auto refusal = [&](const uint64_t* state) -> std::string {
        foveal_forward_args forward = *given.forward;
        forward.dropout_state = state;
        foveal_backward_args args = given;
        args.forward = &forward;
        EXPECT_EQ(foveal_backward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
        return foveal_last_error();
    };
    EXPECT_EQ(refusal(nullptr), "dropout_state is NULL and dropout_p is 0.5; it must hold a seed and an offset");
    const auto* const in_dk = reinterpret_cast<const uint64_t*>(reinterpret_cast<uintptr_t>(given.dk.data) / 8 * 8);
    EXPECT_EQ(refusal(in_dk), "dk overlaps dropout_state; they must lie apart");
}

TEST_P(BackwardDropout, DroppingNothingIsNoDropout) {
    for (const std::string& type : types()) {
        const std::string words = "b2 s90 hq4 hk2 d64 sinks alibi causal" + type;
        EXPECT_EQ(bytes_of(*run(words)), bytes_of(*run(words + " dropout0.000007"))) << words;
    }
}

TEST_P(BackwardDropout, ThreadsAndTheFormOfTheBatchChangeNoBit) {
    if (on_gpu()) GTEST_SKIP() << "SKIPPED: sm90 has no dropout yet";
    const std::string rest = " hq4 hk2 d64 bf16 causal dropout0.2";
    ASSERT_EQ(foveal_set_num_threads(1), FOVEAL_OK);
    const auto one = run("b2 s300" + rest);
    ASSERT_EQ(foveal_set_num_threads(4), FOVEAL_OK);
    const auto several = run("b2 s300" + rest);
    const auto packed = run("varlen qlens=300,300 klens=300,300" + rest);
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
    EXPECT_EQ(bytes_of(*one), bytes_of(*several));
    EXPECT_EQ(one->dq.values(), packed->dq.values());
    EXPECT_EQ(one->dk.values(), packed->dk.values());
    EXPECT_EQ(one->dv.values(), packed->dv.values());
}

}  // namespace
}  // namespace foveal_testing
