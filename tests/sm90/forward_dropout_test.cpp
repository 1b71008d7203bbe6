// Dropout on the sm90 backend (contract 1.16): the forward's results and masks, and a state that changes between the
// replays of a graph. Gradients: tests/contract/backward_dropout_test.cpp, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/contract/dropout_fixture.hpp"
#include "tests/support/backward_data.hpp"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

using State = std::array<uint64_t, 2>;

void expect_right_under_dropout(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kSm90);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
}

TEST_F(Gpu, DropoutIsRightBesideEveryOption) {
    for (const std::string type : {" bf16", " f16"})
        for (const std::string words :
             {"b2 sq113 sk203 hq4 hk2 d64 causal lse dropout0.1", "b2 s130 h2 d40 dv24 left70 dropout0.5 pad",
              "b2 sq3 sk700 hq4 hk2 d64 lse dropout0.2", "b1 sq1 sk3000 hq8 hk1 d64 sinks lse dropout0.2",
              "b3 sq70 sk200 hq4 hk2 d32 used_q=70,0,9 used_k=200,5,130 lse dropout0.3",
              "b1 s300 h2 d64 softcap5 alibi sinks bias=bh mask=b1 lse dropout0.4",
              "varlen qlens=5,0,130 klens=64,9,300 hq4 hk2 d64 causal lse dropout0.1",
              "varlen qlens=9,33 sk100 used_k=100,37 hq4 hk2 d64 causal tree dropout0.25",
              "b2 sq40 sk120 hq4 hk2 d64 page16 used_k=120,77 qoff=60,-3 causal dropout0.25",
              "b2 sq40 sk120 hq4 hk2 d128 page5 used_k=120,77 dropout0.25", "b1 s128 h1 d64 dropout0.999985 vnan40",
              "b1 s64 h1 d16 chunk20 dropout0.0001 sd10", "b2 s600 hq8 hk2 d128 causal lse dropout0.1",
              "b2 sq600 sk700 hq8 hk2 d192 dv128 causal lse dropout0.1",
              "b1 sq500 sk900 hq4 hk1 d256 alibi lse dropout0.2", "b1 sq200 sk333 hq4 hk2 d512 softcap9 lse dropout0.3",
              "b1 s500 h2 d128 sd30 dropout0.25", "varlen qlens=700,64,1 klens=700,64,1 hq6 hk2 d128 lse dropout0.1",
              "b1 s300 h2 d128 scale-0.2 dropout0.3"})
            expect_right_under_dropout(words + type);
}

// q is 0, so that all weights are the same; v is a part of the identity: what comes out is the weights of so many keys,
// and 0 is where one was dropped.
void expect_mask(const std::string& text) {
    const auto data = on_gpu(text);
    const Case& c = data->the_case();
    const std::vector<uint8_t> mask = mask_of(c);
    foveal_forward_args args = data->args();
    const int64_t channels = c.head_dim_v;
    const auto elements = [](int64_t count) { return std::vector<uint16_t>(static_cast<size_t>(count)); };
    DeviceBuffer q(elements(c.batch * c.rows_q * c.heads_q * c.head_dim)),
        v(elements(c.batch * c.rows_k * c.heads_k * channels));
    args.q.data = q.as();
    args.v.data = v.as();
    for (int64_t first = 0; first < c.rows_k; first += channels) {
        std::vector<uint16_t> identity = elements(c.batch * c.rows_k * c.heads_k * channels);
        const int64_t end = std::min(first + channels, c.rows_k);
        for (int64_t b = 0; b < c.batch; ++b)
            for (int64_t row = first; row < end; ++row)
                for (int64_t head = 0; head < c.heads_k; ++head)
                    identity[static_cast<size_t>(((b * c.rows_k + row) * c.heads_k + head) * channels + row - first)] =
                        0x3F80;  // 1
        v.upload(identity.data());
        data->poison_outputs();
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << text << ": " << foveal_last_error();
        data->synchronize();
        for (int64_t b = 0; b < c.batch; ++b)
            for (int64_t head = 0; head < c.heads_q; ++head) {
                std::vector<float> out(static_cast<size_t>(c.rows_q * channels));
                data->read(TensorId::kOut, b, head, 0, c.rows_q, out.data());
                for (int64_t row = 0; row < c.rows_q; ++row)
                    for (int64_t j = first; j < end; ++j) {
                        const int64_t at = ((b * c.heads_q + head) * c.rows_q + row) * c.rows_k + j;
                        ASSERT_EQ(out[static_cast<size_t>(row * channels + j - first)] != 0,
                                  mask[static_cast<size_t>(at)] != 0)
                            << text << ": sequence " << b << " head " << head << " query " << row << " key " << j;
                    }
            }
    }
}

TEST_F(Gpu, TheWeightsShowDropoutsMask) {
    for (const std::string shape : {"b2 sq1 sk300", "b2 sq17 sk130", "b2 sq200 sk600", "b1 sq64 sk64"})
        for (const std::string heads : {" h3", " hq8 hk2", " hq5 hk1"})
            for (const std::string d : {" d64", " d128", " d192 dv128", " d256", " d512"})
                for (const std::string p : {" dropout0.3", " dropout0.9"}) expect_mask(shape + heads + d + " bf16" + p);
}

TEST_F(Gpu, DropoutsBitsDoNotDependOnTheBatch) {
    const std::string rest = " hq4 hk2 d128 bf16 causal lse dropout0.2 dropstate=7,8";
    const auto rows = [](CaseData& data, int64_t sequence) {
        std::vector<float> out(static_cast<size_t>(data.the_case().used_q(sequence) * data.the_case().head_dim_v));
        data.read(TensorId::kOut, sequence, 3, 0, data.the_case().used_q(sequence), out.data());
        return out;
    };
    const auto ran = [](const std::string& text) {
        auto data = on_gpu(text);
        run(*data);
        data->synchronize();
        return data;
    };
    // A sequence's number is one of the inputs: the first has the same alone.
    EXPECT_EQ(rows(*ran("b3 sq270 sk390" + rest), 0), rows(*ran("b1 sq270 sk390" + rest), 0));
    EXPECT_EQ(rows(*ran("varlen qlens=270,5,300 klens=390,9,390" + rest), 0),
              rows(*ran("varlen qlens=270 klens=390" + rest), 0));
    for (const std::string& text : {"b3 sq270 sk390" + rest, std::string("b2 s300 h2 d64 f16 alibi dropout0.5")})
        for (int again = 0; again < 100; ++again) ASSERT_EQ(outputs_of(text), outputs_of(text)) << text;
}

template <class Enqueue>
cudaGraphExec_t captured(cudaStream_t stream, Enqueue enqueue) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    enqueue();
    require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    return executable;
}

void set_state(const foveal_forward_args& args, const State& state) {
    require_cuda(
        cudaMemcpy(const_cast<uint64_t*>(args.dropout_state), state.data(), sizeof state, cudaMemcpyHostToDevice),
        "copy of the state");
}

std::string with_state(const std::string& text, const State& state) {
    return text + " dropstate=" + std::to_string(state[0]) + "," + std::to_string(state[1]);
}

constexpr State kStates[] = {{1, 2}, {1, 3}, {~0ull, 5000000000}, {1, 2}};

TEST_F(Gpu, AGraphIsReplayedWithAnotherDropoutState) {
    for (const std::string text :
         {"b2 s300 hq4 hk2 d128 bf16 causal lse dropout0.2", "varlen qlens=70,1 klens=90,5 h2 d64 f16 dropout0.5",
          "b2 sq1 sk500 hq8 hk1 d64 bf16 dropout0.3"}) {
        const auto data = on_gpu(text);
        run(*data);
        data->synchronize();
        const Stream stream;
        const cudaGraphExec_t graph =
            captured(stream, [&] { ASSERT_EQ(foveal_forward(&data->args(), stream), FOVEAL_OK); });
        for (const State& state : kStates) {
            set_state(data->args(), state);
            data->poison_outputs();
            data->synchronize();
            require_cuda(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
            stream.synchronize();
            EXPECT_EQ(outputs(*data), outputs_of(with_state(text, state))) << text;
        }
        require_cuda(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
    }
}

TEST_F(Gpu, AGraphOfGradientsIsReplayedWithAnotherDropoutState) {
    for (const std::string text :
         {"backward b2 s300 hq4 hk2 d128 bf16 causal dropout0.2",
          "backward b1 s130 h2 d64 f16 bias=11 alibi dropout0.5", "backward s90 h2 d256 bf16 dropout0.3"}) {
        BackwardData data(parse_backward_case(text), kSm90);
        ASSERT_EQ(data.run_forward(), FOVEAL_OK) << foveal_last_error();
        ASSERT_EQ(data.run(), FOVEAL_OK) << foveal_last_error();
        const foveal_backward_args args = data.args();
        const Stream stream;
        const cudaGraphExec_t graph = captured(stream, [&] {
            ASSERT_EQ(foveal_forward(args.forward, stream), FOVEAL_OK);
            ASSERT_EQ(foveal_backward(&args, stream), FOVEAL_OK);
        });
        for (const State& state : kStates) {
            set_state(*args.forward, state);
            require_cuda(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
            stream.synchronize();
            BackwardData eager(parse_backward_case(with_state(text, state)), kSm90);
            ASSERT_EQ(eager.run_forward(), FOVEAL_OK) << foveal_last_error();
            ASSERT_EQ(eager.run(), FOVEAL_OK) << foveal_last_error();
            EXPECT_EQ(data.dq.values(), eager.dq.values()) << text;
            EXPECT_EQ(data.dk.values(), eager.dk.values()) << text;
            EXPECT_EQ(data.dv.values(), eager.dv.values()) << text;
        }
        require_cuda(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
    }
}

}  // namespace
}  // namespace foveal_testing
