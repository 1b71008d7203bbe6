// Gradients over ranks are those of one device (contract 1.13, 1.15): every mask, method and placement, on the CPU
// backend.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"
#include "tests/contract/backward_fixture.hpp"
#include "tests/parallel/drawn.hpp"
#include "tests/parallel/ranks.hpp"

namespace foveal_testing {
namespace {

constexpr uint32_t kGradientCases = 600;

// The forward's grid, with a gradient through the log-sum-exp in every third case.
std::string text_of(const Drawn& drawn) { return drawn.text + (drawn.seed % 3 == 0 ? " dlse" : ""); }

TEST(GradientsOverRanks, Grid) {
    for (uint32_t seed = 1; seed <= kGradientCases; ++seed) {
        const Drawn drawn = draw_case(seed);
        const CheckResult result = check_gradients_over_ranks(
            text_of(drawn), [&](const foveal_forward_args& whole) { return drawn.on(whole); });
        EXPECT_TRUE(result.passed()) << drawn.described() << "\n" << result.message;
    }
}

// The grid bites: some case fails where a rank's call ignores something, or a gradient's term or summand is lost.
TEST(GradientsOverRanks, TheGridNoticesWhatIsIgnored) {
    const struct {
        const char* name;
        ChangeGradients drop;
    } mutations[] = {
        {"window_left", [](auto&, auto& f) { f.window_left = FOVEAL_UNLIMITED; }},
        {"window_right", [](auto&, auto& f) { f.window_right = FOVEAL_UNLIMITED; }},
        {"alignment", [](auto&, auto& f) { f.alignment = 1 - f.alignment; }},
        {"chunk", [](auto&, auto& f) { f.chunk = 0; }},
        {"softcap", [](auto&, auto& f) { f.softcap = 0; }},
        {"alibi_slopes", [](auto& b, auto& f) { f.alibi_slopes = b.dalibi_slopes = {}; }},
        {"mask", [](auto&, auto& f) { f.mask = {}; }},
        {"bias", [](auto&, auto& f) { f.bias = {}; }},
        {"dlse", [](auto& b, auto&) { b.dlse = {}; }},
        {"dq", [](auto& b, auto&) { b.dq = {}; }},
        {"dk", [](auto& b, auto&) { b.dk = {}; }},
        {"dv", [](auto& b, auto&) { b.dv = {}; }},
        {"dsinks", [](auto& b, auto&) { b.dsinks = {}; }},
        {"dbias", [](auto& b, auto&) { b.dbias = {}; }},
        {"dalibi_slopes", [](auto& b, auto&) { b.dalibi_slopes = {}; }},
    };
    for (const auto& mutation : mutations) {
        bool noticed = false;
        for (uint32_t seed = 1; seed <= 150 && !noticed; ++seed) {
            const Drawn drawn = draw_case(seed);
            noticed =
                !check_gradients_over_ranks(
                     text_of(drawn), [&](const foveal_forward_args& whole) { return drawn.on(whole); }, mutation.drop)
                     .passed();
        }
        EXPECT_TRUE(noticed) << mutation.name;
    }
}

std::unique_ptr<BackwardData> data_of(const std::string& text) {
    auto data = std::make_unique<BackwardData>(parse_backward_case("backward " + text), FOVEAL_BACKEND_CPU);
    EXPECT_EQ(data->run_forward(), FOVEAL_OK) << foveal_last_error();
    return data;
}

constexpr foveal_parallel_method kMethods[] = {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER,
                                               FOVEAL_PARALLEL_ULYSSES};

// Whatever is shared of a bias: elements of one row and key, and sums over keys, rows and ranks.
TEST(GradientsOverRanks, BiasesOfEveryForm) {
    for (const char* form : {"=bh", "_f32=11", "=bhq1", "=1hq1", "=bh1k", "_f32=b11k", "=1111"})
        for (const foveal_parallel_method method : {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER})
            for (const char* seen : {" causal", " left40 causal", " full"}) {
                const std::string text = std::string("b2 sq150 sk203 hq4 hk2 d32 bf16 bias") + form + seen;
                const CheckResult result = check_gradients_over_ranks(
                    text, [&](const foveal_forward_args& whole) { return zigzag(whole, 3, method); });
                EXPECT_TRUE(result.passed()) << result.message;
            }
}

TEST(GradientsOverRanks, ASingleRowDoesNotTellWhoseItsBiasIs) {
    const auto data = data_of("b1 s64 hq4 hk2 d32 bf16 causal bias=bh");
    Ranks ranks = zigzag(*data->args().forward, 2);
    ranks.spans_q = {{.sequence = 0, .position = 0, .rows = 63, .rank = 0, .reserved = 0},
                     {.sequence = 0, .position = 63, .rows = 1, .rank = 1, .reserved = 0}};
    for (const RankResult& result : run_ranks(data->args(), ranks)) {
        EXPECT_EQ(result.status, FOVEAL_UNSUPPORTED);
        EXPECT_NE(result.message.find("gradients.dbias is present and rank 1 has one row"), std::string::npos);
    }
}

TEST(GradientsOverRanks, TheSameBitsInEveryRun) {
    for (const foveal_parallel_method method : kMethods) {
        const auto data = data_of("b2 s300 hq8 hk2 d32 bf16 causal sinks alibi_b dlse");
        Ranks ranks = zigzag(data->args().forward[0], 4, method);
        ranks.calls = 20;
        for (const RankResult& result : run_ranks(data->args(), ranks)) EXPECT_EQ(result.message, "");
    }
}

// One rank that has everything, without a message: one device's, to the bit (but for the sign of zeros).
TEST(GradientsOverRanks, OneRankIsOneDevice) {
    for (const foveal_parallel_method method : kMethods) {
        for (const std::string type : {"bf16", "f32"}) {
            const auto expected = data_of("b2 s300 hq4 hk2 d32 causal sinks alibi dlse " + type),
                       got = data_of("b2 s300 hq4 hk2 d32 causal sinks alibi dlse " + type);
            ASSERT_EQ(expected->run(), FOVEAL_OK) << foveal_last_error();
            const foveal_backward_args args = got->args();
            EXPECT_EQ(run_ranks(args, zigzag(*args.forward, 1, method))[0].message, "");
            EXPECT_EQ(got->dq.values(), expected->dq.values());
            EXPECT_EQ(got->dk.values(), expected->dk.values());
            EXPECT_EQ(got->dv.values(), expected->dv.values());
            EXPECT_EQ(got->dsinks->values(), expected->dsinks->values());
            EXPECT_EQ(got->dalibi->values(), expected->dalibi->values());
        }
    }
}

// Any of them alone has the same bits as beside the others.
TEST(GradientsOverRanks, WhatIsAskedChangesNoOther) {
    for (const foveal_parallel_method method : kMethods) {
        const auto all = data_of("b1 s200 hq4 hk4 d32 f16 causal sinks alibi"),
                   one = data_of("b1 s200 hq4 hk4 d32 f16 causal sinks alibi");
        const Ranks ranks = zigzag(*all->args().forward, 4, method);
        EXPECT_EQ(run_ranks(all->args(), ranks)[0].message, "");
        foveal_tensor foveal_backward_args::*const asked[] = {&foveal_backward_args::dq, &foveal_backward_args::dk,
                                                              &foveal_backward_args::dv, &foveal_backward_args::dsinks,
                                                              &foveal_backward_args::dalibi_slopes};
        for (const auto kept : asked) {
            foveal_backward_args args = one->args();
            const foveal_tensor tensor = args.*kept;
            for (const auto other : asked) args.*other = {};
            args.*kept = tensor;
            for (const RankResult& result : run_ranks(args, ranks)) EXPECT_EQ(result.message, "");
        }
        EXPECT_EQ(one->dq.bytes(), all->dq.bytes());
        EXPECT_EQ(one->dk.bytes(), all->dk.bytes());
        EXPECT_EQ(one->dv.bytes(), all->dv.bytes());
        EXPECT_EQ(one->dsinks->bytes(), all->dsinks->bytes());
        EXPECT_EQ(one->dalibi->bytes(), all->dalibi->bytes());
    }
}

TEST(GradientsOverRanks, ARankThatFailsMakesTheOthersFail) {
    const auto data = data_of("b1 s300 hq4 hk4 d32 f32 causal");
    const foveal_backward_args args = data->args();
    for (const foveal_parallel_method method : kMethods) {
        Ranks ranks = zigzag(*args.forward, 4, method);
        ranks.before_call = [](int32_t rank, foveal_parallel_args& of) {
            if (rank == 2) of.workspace_bytes = 1;
            return true;
        };
        const std::vector<RankResult> results = run_ranks(args, ranks);
        for (size_t rank = 0; rank < 4; ++rank) {
            const char* const message = rank == 2 ? "workspace_bytes is 1" : "has failed";
            EXPECT_NE(results[rank].status, FOVEAL_OK) << rank;
            EXPECT_NE(results[rank].message.find(message), std::string::npos) << results[rank].message;
        }
    }
}

// Over a transport whose exchange number `broken_at` fails on rank 1: in keys' way, and in gradients' way back.
struct Breaking {
    foveal_transport inner;
    int exchanges_left;
};
Breaking& breaking(void* context) { return *static_cast<Breaking*>(context); }

foveal_transport breaking_transport(const foveal_transport& inner, int broken_at) {
    foveal_transport t = inner;
    t.context = new Breaking{inner, broken_at};
    t.begin = [](void* c) {
        return --breaking(c).exchanges_left == 0 ? foveal_status{FOVEAL_INTERNAL_ERROR}
                                                 : breaking(c).inner.begin(breaking(c).inner.context);
    };
    t.send = [](void* c, const void* data, uint64_t bytes, int32_t peer, void* stream) {
        return breaking(c).inner.send(breaking(c).inner.context, data, bytes, peer, stream);
    };
    t.recv = [](void* c, void* data, uint64_t bytes, int32_t peer, void* stream) {
        return breaking(c).inner.recv(breaking(c).inner.context, data, bytes, peer, stream);
    };
    t.end = [](void* c, void* stream, double timeout) {
        return breaking(c).inner.end(breaking(c).inner.context, stream, timeout);
    };
    t.abort_all = [](void* c) { breaking(c).inner.abort_all(breaking(c).inner.context); };
    t.message = [](void* c) {
        return breaking(c).exchanges_left == 0 ? "a broken cable"
                                               : breaking(c).inner.message(breaking(c).inner.context);
    };
    t.destroy = [](void* c) {
        breaking(c).inner.destroy(breaking(c).inner.context);
        delete &breaking(c);
    };
    return t;
}

TEST(GradientsOverRanks, ARankThatFailsOnItsWay) {
    const auto data = data_of("b1 s400 hq4 hk4 d32 f32 sinks");
    const foveal_backward_args args = data->args();
    for (const foveal_parallel_method method : kMethods) {
        // ring: keys and gradients of 3 hops, sinks; all_gather: one of each; ulysses: rows, log-sum-exps, back, sinks
        const int exchanges = method == FOVEAL_PARALLEL_RING ? 7 : method == FOVEAL_PARALLEL_ALL_GATHER ? 3 : 4;
        for (int broken_at = 1; broken_at <= exchanges + 1; ++broken_at) {
            Ranks ranks = zigzag(*args.forward, 4, method);
            ranks.calls = 1;
            ranks.connect = [&](foveal_communicator** communicators) {
                size_t rank = 0;
                for (const foveal_transport& inner : foveal::parallel::in_process_transports(4)) {
                    const foveal_transport t = breaking_transport(inner, rank == 1 ? broken_at : 0);
                    ASSERT_EQ(foveal_communicator_create(&t, 60, &communicators[rank++]), FOVEAL_OK);
                }
            };
            const std::vector<RankResult> results = run_ranks(args, ranks);
            for (size_t rank = 0; rank < 4; ++rank) {
                if (broken_at > exchanges)
                    EXPECT_EQ(results[rank].message, "") << method;
                else
                    EXPECT_NE(results[rank].status, FOVEAL_OK) << method << ", exchange " << broken_at;
            }
        }
    }
}

TEST(GradientsOverRanks, RefusesByName) {
    const auto data = data_of("b1 s64 hq4 hk2 d32 bf16 causal bias=bh");
    foveal_backward_args whole = data->args();
    whole.dbias = {};
    const struct {
        std::function<void(foveal_parallel_args&, foveal_forward_args&, foveal_backward_args&)> spoil;
        foveal_status status;
        const char* message;
    } cases[] = {
        {[](auto&, auto&, auto& b) { b.dbias = b.dq; }, FOVEAL_INVALID_ARGUMENT, "gradients.dbias.shape[1] is"},
        {[](auto&, auto& f, auto& b) { b.dbias = f.bias, f.bias = {}; }, FOVEAL_INVALID_ARGUMENT,
         "gradients.dbias is present but forward.bias is absent"},
        {[](auto&, auto& f, auto& b) { b.dbias = f.bias, b.dbias.dtype = FOVEAL_F16; }, FOVEAL_INVALID_ARGUMENT,
         "dbias.dtype is f16"},
        {[](auto&, auto& f, auto& b) { b.dbias = f.bias, b.dbias.stride[2] = 0; }, FOVEAL_INVALID_ARGUMENT,
         "dbias would overlap itself"},
        {[](auto&, auto& f, auto&) { f.backend = FOVEAL_BACKEND_SM90; }, FOVEAL_UNSUPPORTED, "forward.backend is sm90"},
        {[](auto&, auto&, auto& b) { b.workspace_bytes = 16; }, FOVEAL_UNSUPPORTED, "gradients.workspace is present"},
        {[](auto&, auto&, auto& b) { b.forward = nullptr; }, FOVEAL_INVALID_ARGUMENT, "gradients->forward is not"},
        {[](auto&, auto&, auto& b) { b.dout = {}; }, FOVEAL_INVALID_ARGUMENT, "dout is absent"},
        {[](auto&, auto& f, auto&) { f.lse = {}; }, FOVEAL_INVALID_ARGUMENT, "forward->lse is absent"},
        {[](auto&, auto&, auto& b) { b.dk.shape[1] = 63; }, FOVEAL_INVALID_ARGUMENT, "dk.shape[1] is 63"},
        {[](auto&, auto&, auto& b) { b.dsinks = b.dq; }, FOVEAL_INVALID_ARGUMENT,
         "dsinks is present but sinks is absent"},
        {[](auto& p, auto&, auto&) { p.ranks = 0; }, FOVEAL_INVALID_ARGUMENT, "ranks is 0"},
    };
    const std::vector<foveal_span> spans = placed(FOVEAL_CONTIGUOUS, {64}, 1);
    for (const auto& one : cases) {
        foveal_forward_args forward = *whole.forward;
        foveal_backward_args gradients = whole;
        foveal_parallel_args args;
        foveal_parallel_args_init(&args);
        args.ranks = 1;
        args.forward = gradients.forward = &forward;
        args.spans_q = spans.data();
        args.spans_q_count = static_cast<int64_t>(spans.size());
        one.spoil(args, forward, gradients);
        foveal_parallel_plan* plan = nullptr;
        EXPECT_EQ(foveal_parallel_backward_plan_create(&args, &gradients, &plan), one.status) << one.message;
        EXPECT_NE(std::string(foveal_last_error()).find(one.message), std::string::npos) << foveal_last_error();
    }
}

// A plan is of one direction, and of the gradients that it was asked for.
TEST(GradientsOverRanks, APlanOfAnotherCall) {
    const auto data = data_of("b1 s64 hq4 hk2 d32 f32 causal");
    const foveal_backward_args gradients = data->args();
    const std::vector<foveal_span> spans = placed(FOVEAL_CONTIGUOUS, {64}, 1);
    foveal_parallel_args args;
    foveal_parallel_args_init(&args);
    args.ranks = 1;
    args.forward = gradients.forward;
    args.spans_q = spans.data();
    args.spans_q_count = static_cast<int64_t>(spans.size());
    foveal_parallel_plan *backward = nullptr, *forward = nullptr;
    ASSERT_EQ(foveal_parallel_backward_plan_create(&args, &gradients, &backward), FOVEAL_OK) << foveal_last_error();
    ASSERT_EQ(foveal_parallel_plan_create(&args, &forward), FOVEAL_OK) << foveal_last_error();
    const auto expect_refused = [](const std::function<foveal_status(foveal_communicator*)>& call,
                                   const char* message) {
        foveal_communicator* communicator = nullptr;
        ASSERT_EQ(foveal_communicator_create_in_process(1, 1, &communicator), FOVEAL_OK);
        EXPECT_EQ(call(communicator), FOVEAL_INVALID_ARGUMENT) << message;
        EXPECT_NE(std::string(foveal_last_error()).find(message), std::string::npos) << foveal_last_error();
        foveal_communicator_destroy(communicator);
    };
    std::vector<std::byte> memory(foveal_parallel_plan_workspace_bytes(backward) + 256);
    args.workspace = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256);
    args.workspace_bytes = foveal_parallel_plan_workspace_bytes(backward);
    expect_refused([&](auto* c) { return foveal_parallel_forward(backward, c, &args, nullptr); },
                   "plan is one of foveal_parallel_backward_plan_create()");
    expect_refused([&](auto* c) { return foveal_parallel_backward(forward, c, &args, &gradients, nullptr); },
                   "plan is one of foveal_parallel_plan_create()");
    foveal_backward_args fewer = gradients;
    fewer.dq = {};
    expect_refused([&](auto* c) { return foveal_parallel_backward(backward, c, &args, &fewer, nullptr); },
                   "gradients are others than the plan was made for");
    foveal_parallel_plan_destroy(backward);
    foveal_parallel_plan_destroy(forward);
}

}  // namespace
}  // namespace foveal_testing
