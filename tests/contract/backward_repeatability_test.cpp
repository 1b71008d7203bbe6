// Gradients: the same bits, isolation and what is asked (contract 1.6, 1.7 and 1.13).
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/backward_fixture.hpp"

namespace foveal_testing {
namespace {

class BackwardBits : public BackwardTest {
   protected:
    std::vector<std::string> problems() const {
        return {"b1 s700 hq4 hk2 d64 bf16 causal", "b2 sq530 sk600 hq4 hk1 d128 f16 sinks softcap20 dlse",
                "varlen qlens=5,0,130,570 klens=64,9,300,580 hq4 hk2 d64 bf16 causal alibi",
                "b2 s300 h2 d64 bf16 sinks bias=1h alibi_b", "b2 s300 hq4 hk2 d128 f16 bias_f32=b11k"};
    }
};
INSTANTIATE_TEST_SUITE_P(Cpu, BackwardBits, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, BackwardBits, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(BackwardBits, TheSameOnEveryRun) {
    for (const std::string& text : problems()) {
        const auto first = run(text);
        const std::vector<std::byte> expected = bytes_of(*first);
        for (int again = 0; again < (on_gpu() ? 1000 : 10); ++again) {
            ASSERT_EQ(first->run(), FOVEAL_OK);
            ASSERT_EQ(bytes_of(*first), expected) << text << ", run " << again;
        }
        EXPECT_EQ(bytes_of(*run(text)), expected) << text;
    }
}

TEST_P(BackwardBits, TheNumberOfThreadsChangesNone) {
    if (on_gpu()) GTEST_SKIP() << "of the cpu backend";
    for (const std::string& text : problems()) {
        std::vector<std::vector<std::byte>> results;
        for (const int32_t threads : {1, 2, 3, 7}) {
            ASSERT_EQ(foveal_set_num_threads(threads), FOVEAL_OK);
            results.push_back(bytes_of(*run(text)));
        }
        ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
        for (const auto& result : results) EXPECT_EQ(result, results[0]) << text;
    }
}

// The first sequence's gradients, whatever follows it.
TEST_P(BackwardBits, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail :
         {" hq4 hk2 d64 bf16 causal dlse", " hq4 hk1 d128 f16 sinks", " h2 d64 bf16 softcap9"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq131 sk203", "b9 sq131 sk203"},
              {"varlen qlens=331 klens=503", "varlen qlens=331,5,0,300,64,9 klens=503,9,4,0,64,500"}}) {
            const auto one = run(alone + tail), all = run(together + tail);
            const Case& c = one->the_case().forward;
            for (const auto member : {&BackwardData::dq, &BackwardData::dk, &BackwardData::dv}) {
                const std::vector<float> mine = ((*one).*member).values(), theirs = ((*all).*member).values();
                for (size_t i = 0; i < mine.size(); ++i)
                    ASSERT_EQ(mine[i], theirs[i]) << together + tail << ", element " << i << " of " << to_text(c);
            }
        }
    }
}

// Nor do those of options that each sequence has its own of.
TEST_P(BackwardBits, SlopesAndBiasOfASequenceDoNotDependOnItsBatch) {
    const auto expect_same = [&](const std::string& alone, const std::string& together, const auto member) {
        const auto one = run(alone), all = run(together);
        const std::vector<float> mine = ((*one).*member)->values(), theirs = ((*all).*member)->values();
        for (size_t i = 0; i < mine.size(); ++i) ASSERT_EQ(mine[i], theirs[i]) << together << ", element " << i;
    };
    for (const std::string bias : {" bias=b1", " bias_f32=b11k", " bias=bh causal"}) {
        const std::string tail = " sq131 sk203 hq4 hk2 d64 bf16" + bias;
        expect_same("b1" + tail, "b9" + tail, &BackwardData::dbias);
    }
    const std::string tail = " hq4 hk2 d64 bf16 causal alibi_b";
    expect_same("b1 sq331 sk503" + tail, "b9 sq331 sk503" + tail, &BackwardData::dalibi);
    expect_same("varlen qlens=331 klens=503" + tail, "varlen qlens=331,5,0,300,64,9 klens=503,9,4,0,64,500" + tail,
                &BackwardData::dalibi);
}

// A gradient has the same bits whichever others are asked for.
TEST_P(BackwardBits, EachGradientAlone) {
    const std::string text = "b2 sq130 sk200 hq4 hk2 d64 bf16 causal sinks alibi bias=1h";
    const auto all = run(text);
    for (int only = 0; only < 6; ++only) {
        const auto data = data_of(text);
        foveal_backward_args args = data->args();
        foveal_tensor* const tensors[] = {&args.dq, &args.dk, &args.dv, &args.dsinks, &args.dbias, &args.dalibi_slopes};
        for (int i = 0; i < 6; ++i)
            if (i != only) tensors[i]->rank = 0;
        ASSERT_EQ(foveal_backward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
        data->forward().synchronize();
        const auto of = [only](BackwardData& d) -> GradientTensor& {
            switch (only) {
                case 0:
                    return d.dq;
                case 1:
                    return d.dk;
                case 2:
                    return d.dv;
                case 3:
                    return *d.dsinks;
                case 4:
                    return *d.dbias;
                default:
                    return *d.dalibi;
            }
        };
        EXPECT_EQ(of(*data).bytes(), of(*all).bytes()) << "gradient " << only;
    }
}

// Rows that see no key: their gradient is 0 whatever dout holds, and they add nothing to any other.
TEST_P(BackwardBits, RowsWithoutAKeyAddNothing) {
    const std::string text = "b1 sq100 sk60 h2 d64 bf16 causal";  // the first 40 rows
    const auto data = run(text);
    const std::vector<std::byte> expected = bytes_of(*data);
    std::vector<float> douts = data->dout.values();
    std::fill_n(douts.begin(), 40 * 2 * 64, std::numeric_limits<float>::quiet_NaN());
    data->dout.set(douts);
    ASSERT_EQ(data->run(), FOVEAL_OK);
    EXPECT_EQ(bytes_of(*data), expected);
    const std::vector<float> dq = data->dq.values();
    for (size_t i = 0; i < size_t{40} * 2 * 64; ++i) ASSERT_EQ(dq[i], 0) << i;
}

TEST_P(BackwardBits, APlanIsTheSame) {
    for (const std::string& text : problems()) {
        const auto expected = run(text), data = data_of(text);
        if (on_gpu()) GTEST_SKIP() << "plans of a device: tests/sm90";
        const foveal_backward_args args = data->args();
        foveal::Plan plan(args);
        EXPECT_NE(plan.describe().find("gradients  dq dk dv"), std::string::npos) << plan.describe();
        plan.launch(args);
        EXPECT_EQ(bytes_of(*data), bytes_of(*expected)) << text;
    }
}

}  // namespace
}  // namespace foveal_testing
