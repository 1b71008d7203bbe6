// What is read may be shared along a dimension: by size 1, by stride 0, or because the dimension is missing (contract
// 1.1). The result is that of the values written out.
#include <cstring>
#include <string>
#include <vector>

#include "tests/contract/score_fixture.hpp"

namespace foveal_testing {
namespace {

using Broadcast = ScoreOption;
INSTANTIATE_TEST_SUITE_P(Cpu, Broadcast, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, Broadcast, testing::Values(FOVEAL_BACKEND_SM90));

void expect_right(foveal_backend backend, const std::string& text) {
    const CheckResult result = check_case(parse_case(text), backend);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
}

TEST_P(Broadcast, MasksAndBiasesSharedAlongAnyDimension) {
    size_t turn = 0;
    for (const std::string& type : types())
        for (const std::string shape :
             {"b2 sq70 sk200 hq4 hk2 d128", "b2 sq70 sk203 hq4 hk2 d64", "b2 sq9 sk330 hq8 hk1 d256 lse",
              "b3 sq130 sk201 h2 d512 used_q=130,1,77 used_k=201,0,130", "b2 sq1 sk70 hq4 hk2 d128 lse",
              "b2 sq70 sk1 hq4 hk2 d64"})
            for (const std::string dimensions : {"b11k", "bh1k", "11q1", "bhq1", "b111", "1111", "1h1k", "11qk"})
                for (const std::string option : {"mask=", "bias=", "bias_f32="}) {
                    const std::string token = option + dimensions;
                    expect_right(backend(), shape + type + (turn++ % 2 == 0 ? " " : " causal pad ") + token);
                }
}

TEST_P(Broadcast, SeveralAtOnce) {
    for (const std::string& type : types())
        for (const std::string tail : {"mask=b11k bias=1hqk", "mask=11q1 bias_f32=b11k alibi", "mask=bh11 softcap30",
                                       "bias=b11k bias_inf", "bias_f32=11q1 bias_inf sinks mask=b11k chunk60"})
            expect_right(backend(), "b3 sq130 sk264 hq4 hk2 d128 lse causal " + tail + type);
}

std::vector<std::byte> outputs_of(CaseData& data, const foveal_forward_args& args) {
    data.poison_outputs();
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    data.synchronize();
    std::vector<std::byte> bytes = data.bytes(TensorId::kOut);
    const std::vector<std::byte> lse = data.bytes(TensorId::kLse);
    bytes.insert(bytes.end(), lse.begin(), lse.end());
    return bytes;
}

// Size 1, stride 0 over the whole size, and missing dimensions are the same.
TEST_P(Broadcast, EveryFormOfSharing) {
    for (const std::string option : {"mask=", "bias=", "bias_f32="})
        for (const std::string dimensions : {"111k", "11q1", "11qk", "1111"}) {
            const auto data = data_of("b3 sq70 sk200 hq4 hk2 d128 bf16 lse " + option + dimensions);
            const std::vector<std::byte> expected = outputs_of(*data, data->args());
            foveal_forward_args args = data->args();
            foveal_tensor& matrix = option == "mask=" ? args.mask : args.bias;
            const foveal_tensor whole = matrix;
            const int64_t sizes[] = {3, 4, 70, 200};
            for (int i = 0; i < 4; ++i)
                if (matrix.shape[i] == 1) matrix.shape[i] = sizes[i], matrix.stride[i] = 0;
            EXPECT_EQ(outputs_of(*data, args), expected) << option << dimensions << " by stride 0";
            for (int missing = 1; missing < 4; ++missing) {
                if (missing == 3 && whole.shape[2] != 1) continue;
                matrix = {whole.data, whole.dtype, 4 - missing, {}, {}};
                std::copy(whole.shape + missing, whole.shape + 4, matrix.shape);
                std::copy(whole.stride + missing, whole.stride + 4, matrix.stride);
                EXPECT_EQ(outputs_of(*data, args), expected) << option << dimensions << " of rank " << 4 - missing;
            }
        }
}

// One head or one sequence of K and V for all.
TEST_P(Broadcast, KeysAndValues) {
    for (const std::string tail : {" full", " causal", " causal softcap30", " mask=bh"})
        for (const int dimension : {0, 1, 2}) {
            const auto data = data_of("b3 sq70 sk200 h4 d128 bf16 lse" + tail);
            foveal_forward_args args = data->args();
            for (foveal_tensor* t : {&args.k, &args.v}) t->stride[dimension] = 0;
            const std::vector<std::byte> got = outputs_of(*data, args);
            // The same, written out.
            const Shape shape{3, 200, 4, 128};
            std::vector<StridedTensor> copies;
            for (const TensorId id : {TensorId::kK, TensorId::kV}) {
                std::vector<float> values;
                for (int64_t b = 0; b < 3; ++b)
                    for (int64_t j = 0; j < 200; ++j)
                        for (int64_t h = 0; h < 4; ++h) {
                            std::vector<float> row(128);
                            data->read(id, dimension == 0 ? 0 : b, dimension == 2 ? 0 : h, dimension == 1 ? 0 : j, 1,
                                       row.data());
                            values.insert(values.end(), row.begin(), row.end());
                        }
                copies.emplace_back(backend(), FOVEAL_BF16, shape);
                copies.back().set(values);
            }
            args.k = copies[0].view();
            args.v = copies[1].view();
            EXPECT_EQ(got, outputs_of(*data, args)) << backend_name(backend()) << tail << " dimension " << dimension;
        }
}

// One slope, one sink, one length for all.
TEST_P(Broadcast, ValuesOfHeadsAndLengths) {
    StridedTensor number(backend(), FOVEAL_F32, {1}), numbers(backend(), FOVEAL_F32, {4}),
        length(backend(), FOVEAL_I32, {1}), lengths(backend(), FOVEAL_I32, {3});
    number.set({0.25F});
    numbers.set({0.25F, 0.25F, 0.25F, 0.25F});
    length.set({33});
    lengths.set({33, 33, 33});
    const struct {
        const char* text;
        foveal_tensor foveal_forward_args::*argument;
        StridedTensor &one, &all;
        int64_t size;
    } kinds[] = {
        {"b3 sq70 sk200 hq4 hk2 d128 bf16 lse alibi", &foveal_forward_args::alibi_slopes, number, numbers, 4},
        {"b3 sq70 sk200 hq4 hk2 d64 bf16 lse sinks mask=11", &foveal_forward_args::sinks, number, numbers, 4},
        {"b3 sq70 sk200 hq4 hk2 d256 f16 lse used_q=70,70,70 mask=11", &foveal_forward_args::seqused_q, length, lengths,
         3},
        {"b3 sq70 sk200 hq4 hk2 d128 bf16 lse used_k=70,70,70 mask=11", &foveal_forward_args::seqused_k, length,
         lengths, 3},
        {"varlen qlens=70,50,33 klens=40,50,90 hq4 hk2 d128 bf16 lse used_k=40,40,40 alibi",
         &foveal_forward_args::seqused_k, length, lengths, 3},
    };
    for (const auto& kind : kinds) {
        const auto data = data_of(kind.text);
        foveal_forward_args args = data->args();
        args.*kind.argument = kind.all.view();
        const std::vector<std::byte> expected = outputs_of(*data, args);
        args.*kind.argument = kind.one.view();
        (args.*kind.argument).shape[0] = kind.size;
        (args.*kind.argument).stride[0] = 0;
        EXPECT_EQ(outputs_of(*data, args), expected) << backend_name(backend()) << " " << kind.text;
    }
}

}  // namespace
}  // namespace foveal_testing
