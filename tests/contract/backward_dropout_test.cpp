// Gradients under dropout (contract 1.13, 1.16): they drop what the forward call dropped.
#include <algorithm>
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
              "varlen qlens=5,0,130 klens=64,9,300 hq4 hk2 d64 causal dlse dropout0.1",
              "b2 sq300 sk270 hq6 hk2 d128 causal softcap9 dropout0.3",
              "b1 s210 hq4 hk1 d128 bias_f32=b11k alibi_b dropout0.2", "b2 sq90 sk150 h2 d192 dv128 causal dropout0.2",
              "b1 s140 hq4 hk2 d256 left50 sinks dropout0.1", "b2 sq70 sk130 h2 d512 dv320 chunk40 alibi dropout0.25",
              "varlen qlens=70,1,200 klens=70,9,130 hq4 hk2 d256 causal dropout0.5",
              "b1 s100 h1 d128 scale-0.1 dropout0.99", "b1 s100 h2 d256 softcap5 alibi dropout0.3"})
            expect_right(words + type);
    }
}

// Of rows of dout that are those of the identity, dv is the weights, and 0 is where one was dropped. channels: of dv;
// so many rows of dout at a time are not 0.
void expect_mask(BackwardData& data, int64_t channels) {
    const Case& c = data.the_case().forward;
    const std::vector<uint8_t> mask = mask_of(c);
    for (int64_t first = 0; first < c.rows_q; first += channels) {
        std::vector<float> dout(static_cast<size_t>(c.batch * c.rows_q * c.heads_q * channels));
        const int64_t end = std::min(first + channels, c.rows_q);
        for (int64_t row = first; row < end; ++row)
            for (int64_t b = 0; b < c.batch; ++b)
                for (int64_t head = 0; head < c.heads_q; ++head)
                    dout[static_cast<size_t>(((b * c.rows_q + row) * c.heads_q + head) * channels + row - first)] = 1;
        data.dout.set(dout);
        ASSERT_EQ(data.run(), FOVEAL_OK) << foveal_last_error();
        const std::vector<float> dv = data.dv.values();
        for (int64_t b = 0; b < c.batch; ++b)
            for (int64_t head = 0; head < c.heads_q; ++head)
                for (int64_t row = first; row < end; ++row)
                    for (int64_t j = 0; j < c.rows_k; ++j) {
                        const auto place = RowPlace::of_k(c, channels, b, head, j) + row - first;
                        const auto at = ((b * c.heads_q + head) * c.rows_q + row) * c.rows_k + j;
                        ASSERT_EQ(dv[static_cast<size_t>(place)] != 0, mask[static_cast<size_t>(at)] != 0)
                            << "sequence " << b << " head " << head << " query " << row << " key " << j;
                    }
    }
}

TEST_P(BackwardDropout, TheWeightsShowTheForwardsMask) {
    if (on_gpu()) {  // each kernel that computes dv
        for (const int64_t d : {64, 128, 200, 512})
            expect_mask(*data_of("b2 sq200 sk330 h3 bf16 dropout0.3 d" + std::to_string(d)), d);
        expect_mask(*data_of("b1 sq130 sk200 h2 bf16 dropout0.9 softcap5 alibi d64"), 64);
        return;
    }
    for (const std::string type : {"f32", "bf16"})
        for (const int32_t threads : {1, 3}) {
            ASSERT_EQ(foveal_set_num_threads(threads), FOVEAL_OK);
            expect_mask(*data_of("b2 sq130 sk200 h3 d16 dv130 dropout0.3 " + type), 130);
            expect_mask(*data_of("b2 sq130 sk200 h3 d16 dv50 dropout0.3 " + type), 50);
        }
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
}

TEST_P(BackwardDropout, TheStateIsReadAlone) {
    const auto data = data_of("b1 s40 h2 d16 bf16 dropout0.5");
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
    const std::string rest = " hq4 hk2 d64 bf16 causal dropout0.2";
    ASSERT_EQ(foveal_set_num_threads(1), FOVEAL_OK);
    const auto one = run("b2 s300" + rest);
    ASSERT_EQ(foveal_set_num_threads(4), FOVEAL_OK);
    const auto several = run("b2 s300" + rest);
    const auto packed = run("varlen qlens=300,300 klens=300,300" + rest);
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
    EXPECT_EQ(bytes_of(*one), bytes_of(*several));
    if (on_gpu()) return;  // where tasks are taken in another order in a packed batch
    EXPECT_EQ(one->dq.values(), packed->dq.values());
    EXPECT_EQ(one->dk.values(), packed->dk.values());
    EXPECT_EQ(one->dv.values(), packed->dv.values());
}

}  // namespace
}  // namespace foveal_testing
