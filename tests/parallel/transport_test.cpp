// Ranks that are late, fail or do not come; transports of the caller; NCCL's, over a library that stands in for it.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.hpp"
#include "tests/parallel/fake_nccl.hpp"
#include "tests/parallel/ranks.hpp"

namespace foveal_testing {
namespace {

using Seconds = std::chrono::duration<double>;

std::unique_ptr<CaseData> data_of(const char* text) { return make_case_data(parse_case(text), FOVEAL_BACKEND_CPU); }

// ---- a caller's transport: the one of this process, whose functions dawdle or break

struct Dawdling {
    foveal_transport inner;
    std::mt19937 random;
    int broken_at = 0;  // the exchange that fails, counted from 1
    int exchanges = 0;
    void dawdle() { std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000)); }
};
Dawdling& dawdling(void* context) { return *static_cast<Dawdling*>(context); }

foveal_transport dawdling_transport(const foveal_transport& inner, uint32_t seed, int broken_at = 0) {
    foveal_transport t = inner;
    t.context = new Dawdling{inner, std::mt19937(seed), broken_at};
    t.begin = [](void* c) {
        dawdling(c).dawdle();
        const bool is_broken = ++dawdling(c).exchanges == dawdling(c).broken_at;
        return is_broken ? foveal_status{FOVEAL_INTERNAL_ERROR} : dawdling(c).inner.begin(dawdling(c).inner.context);
    };
    t.send = [](void* c, const void* data, uint64_t bytes, int32_t peer, void* stream) {
        return dawdling(c).inner.send(dawdling(c).inner.context, data, bytes, peer, stream);
    };
    t.recv = [](void* c, void* data, uint64_t bytes, int32_t peer, void* stream) {
        return dawdling(c).inner.recv(dawdling(c).inner.context, data, bytes, peer, stream);
    };
    t.end = [](void* c, void* stream, double timeout) {
        dawdling(c).dawdle();
        const foveal_status status = dawdling(c).inner.end(dawdling(c).inner.context, stream, timeout);
        dawdling(c).dawdle();
        return status;
    };
    t.abort_all = [](void* c) { dawdling(c).inner.abort_all(dawdling(c).inner.context); };
    t.message = [](void* c) {
        return dawdling(c).broken_at > 0 ? "a broken cable" : dawdling(c).inner.message(dawdling(c).inner.context);
    };
    t.destroy = [](void* c) {
        dawdling(c).inner.destroy(dawdling(c).inner.context);
        delete &dawdling(c);
    };
    return t;
}

TEST(Transport, TheSameBitsWhoeverIsLate) {
    for (const auto method : {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER, FOVEAL_PARALLEL_ULYSSES}) {
        const auto data = data_of("b2 s300 hq4 hk4 d32 bf16 causal sinks lse");
        std::vector<std::byte> out, lse;
        for (uint32_t run = 0; run < 25; ++run) {
            Ranks ranks = zigzag(data->args(), 4, method);
            if (run > 0)
                ranks.connect = [&](foveal_communicator** communicators) {
                    uint32_t rank = 0;
                    for (const foveal_transport& inner : foveal::parallel::in_process_transports(4)) {
                        const foveal_transport t = dawdling_transport(inner, run * 10 + rank);
                        ASSERT_EQ(foveal_communicator_create(&t, 60, &communicators[rank++]), FOVEAL_OK);
                    }
                };
            data->poison_outputs();
            for (const RankResult& result : run_ranks(data->args(), ranks)) ASSERT_EQ(result.message, "");
            if (run == 0) out = data->bytes(TensorId::kOut), lse = data->bytes(TensorId::kLse);
            EXPECT_EQ(data->bytes(TensorId::kOut), out) << "run " << run;
            EXPECT_EQ(data->bytes(TensorId::kLse), lse) << "run " << run;
        }
    }
}

// ---- ranks that fail

TEST(Transport, ARankThatFailsMakesTheOthersFail) {
    const auto data = data_of("b1 s300 hq4 hk2 d32 f32 causal");
    for (const auto method : {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER, FOVEAL_PARALLEL_ULYSSES}) {
        Ranks ranks = zigzag(data->args(), 2, method);
        ranks.before_call = [](int32_t rank, foveal_parallel_args& args) {
            if (rank == 1) args.workspace_bytes = 1;
            return true;
        };
        const auto begin = std::chrono::steady_clock::now();
        const std::vector<RankResult> results = run_ranks(data->args(), ranks);
        EXPECT_LT(Seconds(std::chrono::steady_clock::now() - begin).count(), 30) << "it waited for the timeout";
        EXPECT_EQ(results[1].status, FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(results[1].message.find("workspace_bytes is 1"), std::string::npos) << results[1].message;
        EXPECT_NE(results[0].status, FOVEAL_OK);
        EXPECT_NE(results[0].message.find("rank 1 has failed"), std::string::npos) << results[0].message;
    }
}

// In the midst of it: when the second hop's keys should travel.
TEST(Transport, ARankThatFailsOnItsWay) {
    const auto data = data_of("b1 s400 hq2 hk2 d32 f32");
    Ranks ranks = zigzag(data->args(), 4);
    ranks.connect = [](foveal_communicator** communicators) {
        uint32_t rank = 0;
        for (const foveal_transport& inner : foveal::parallel::in_process_transports(4)) {
            const foveal_transport t = dawdling_transport(inner, rank, rank == 2 ? 2 : 0);
            ASSERT_EQ(foveal_communicator_create(&t, 60, &communicators[rank++]), FOVEAL_OK);
        }
    };
    const std::vector<RankResult> results = run_ranks(data->args(), ranks);
    EXPECT_EQ(results[2].message, "begin of rank 2: a broken cable");
    for (const int32_t other : {0, 1, 3})
        EXPECT_NE(results[static_cast<size_t>(other)].message.find("rank 2 has failed"), std::string::npos);
}

TEST(Transport, ARankThatDoesNotComeIsATimeout) {
    const auto data = data_of("b1 s300 hq2 hk2 d32 f32");
    Ranks ranks = zigzag(data->args(), 3);
    ranks.timeout_seconds = 0.3;
    ranks.before_call = [](int32_t rank, foveal_parallel_args&) { return rank != 1; };
    const std::vector<RankResult> results = run_ranks(data->args(), ranks);
    for (const int32_t other : {0, 2})
        EXPECT_NE(results[static_cast<size_t>(other)].status, FOVEAL_OK) << "rank " << other;
    EXPECT_NE((results[0].message + results[2].message).find("rank 1 has not come within the timeout"),
              std::string::npos)
        << results[0].message << results[2].message;
}

TEST(Transport, PlansOfDifferentProblemsAreNoticed) {
    const auto data = data_of("b1 s300 hq2 hk2 d32 f32");
    Ranks ranks = zigzag(data->args(), 2);
    foveal_communicator* communicators[2];
    ASSERT_EQ(foveal_communicator_create_in_process(2, 60, communicators), FOVEAL_OK);
    ranks.connect = [&](foveal_communicator** to) { to[0] = communicators[1], to[1] = communicators[0]; };
    const std::vector<RankResult> results = run_ranks(data->args(), ranks);
    EXPECT_EQ(results[0].message, "the communicator is of rank 1 of 2, the plan of rank 0 of 2");
}

TEST(Transport, AnAbortedCommunicatorStaysSo) {
    foveal_communicator* communicators[1];
    ASSERT_EQ(foveal_communicator_create_in_process(1, 60, communicators), FOVEAL_OK);
    EXPECT_EQ(foveal_communicator_wait(communicators[0], nullptr), FOVEAL_OK);
    EXPECT_EQ(foveal_communicator_abort(communicators[0]), FOVEAL_OK);
    EXPECT_EQ(foveal_communicator_wait(communicators[0], nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("has been aborted"), std::string::npos);
    foveal_communicator_destroy(communicators[0]);
}

TEST(Transport, MalformedOnesAreRefused) {
    const std::vector<foveal_transport> transports = foveal::parallel::in_process_transports(2);
    const foveal_transport& t = transports[0];
    foveal_communicator* communicator = nullptr;
    const auto refused = [&](auto change, const char* message, double timeout = 1) {
        foveal_transport changed = t;
        change(changed);
        EXPECT_EQ(foveal_communicator_create(&changed, timeout, &communicator), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find(message), std::string::npos) << foveal_last_error();
    };
    refused([](foveal_transport& c) { c.rank = 2; }, "transport.rank is 2");
    refused([](foveal_transport& c) { c.ranks = 0; }, "transport.ranks is 0");
    refused([](foveal_transport& c) { c.abort_all = nullptr; }, "is NULL");
    refused([](foveal_transport& c) { c.struct_size = 8; }, "args.struct_size is 8");
    refused([](foveal_transport&) {}, "timeout_seconds is 0", 0);
    EXPECT_EQ(foveal_communicator_create_in_process(0, 1, &communicator), FOVEAL_INVALID_ARGUMENT);
    for (const foveal_transport& own : transports) own.destroy(own.context);
}

// ---- NCCL

class FakeNccl {
   public:
    FakeNccl() : handle_(dlopen(FOVEAL_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL)) {
        find(init_all, "fake_nccl_init_all");
        find(is_aborted, "fake_nccl_is_aborted");
        find(free, "fake_nccl_free");
        find(open_groups, "fake_nccl_open_groups");
    }
    fake_nccl_init_all_function init_all = nullptr;
    fake_nccl_is_aborted_function is_aborted = nullptr;
    fake_nccl_free_function free = nullptr;
    fake_nccl_open_groups_function open_groups = nullptr;

   private:
    template <class Function>
    void find(Function& function, const char* name) {
        function = reinterpret_cast<Function>(dlsym(handle_, name));
        if (function == nullptr) throw std::runtime_error(std::string("the fake has no ") + name);
    }
    void* handle_;
};

struct NcclRun {
    std::vector<RankResult> results;
    std::vector<int> aborted;
};

NcclRun run_over_nccl(CaseData& data, int32_t count, const FakeNcclBehaviour& behaviour, double timeout_seconds = 60) {
    const FakeNccl nccl;
    std::vector<foveal_nccl_comm_t> comms(static_cast<size_t>(count));
    nccl.init_all(comms.data(), count, &behaviour);
    Ranks ranks = zigzag(data.args(), count);
    ranks.connect = [&](foveal_communicator** communicators) {
        for (size_t i = 0; i < comms.size(); ++i)
            ASSERT_EQ(foveal_communicator_create_nccl(comms[i], FOVEAL_FAKE_NCCL, timeout_seconds, &communicators[i]),
                      FOVEAL_OK)
                << foveal_last_error();
    };
    NcclRun run{run_ranks(data.args(), ranks), {}};
    for (foveal_nccl_comm_t comm : comms) {
        run.aborted.push_back(nccl.is_aborted(comm));
        nccl.free(comm);
    }
    return run;
}

TEST(Nccl, GroupsOfBytesThatMayEndInTheBackground) {
    const auto data = data_of("b2 s200 hq4 hk2 d32 bf16 causal lse");
    for (const int looks : {0, 3}) {
        data->poison_outputs();
        const NcclRun run = run_over_nccl(*data, 4, {.looks_in_progress = looks});
        for (const RankResult& result : run.results) EXPECT_EQ(result.message, "");
        EXPECT_EQ(run.aborted, std::vector<int>(4, 0));
        EXPECT_EQ(verify(*data).failure, "");
    }
}

TEST(Nccl, ItsErrorsAreReturnedAndAbortIt) {
    const auto data = data_of("b1 s200 hq4 hk2 d32 bf16 causal");
    const NcclRun background = run_over_nccl(*data, 2, {.async_error = 6});
    for (const RankResult& result : background.results) {
        EXPECT_EQ(result.status, FOVEAL_CUDA_ERROR);
        EXPECT_NE(result.message.find("remote error, said the fake"), std::string::npos) << result.message;
    }
    EXPECT_EQ(background.aborted, std::vector<int>(2, 1));
    const NcclRun sends = run_over_nccl(*data, 2, {.send_fails = 1});
    EXPECT_NE(sends.results[0].message.find("ncclSend: invalid usage"), std::string::npos) << sends.results[0].message;
    EXPECT_EQ(sends.aborted, std::vector<int>(2, 1));
}

TEST(Nccl, WhatDoesNotEndIsATimeoutAndAbortsIt) {
    const auto data = data_of("b1 s200 hq4 hk2 d32 bf16 causal");
    const NcclRun run = run_over_nccl(*data, 2, {.looks_in_progress = 1 << 30}, 0.2);
    for (const RankResult& result : run.results)
        EXPECT_NE(result.message.find("ncclGroupEnd has not ended within 0.2"), std::string::npos) << result.message;
    EXPECT_EQ(run.aborted, std::vector<int>(2, 1));
}

TEST(Nccl, WaitAsksForErrorsToo) {
    const FakeNccl nccl;
    foveal_nccl_comm_t comm = nullptr;
    const FakeNcclBehaviour behaviour{.async_error = 6};
    nccl.init_all(&comm, 1, &behaviour);
    foveal_communicator* communicator = nullptr;
    ASSERT_EQ(foveal_communicator_create_nccl(comm, FOVEAL_FAKE_NCCL, 1, &communicator), FOVEAL_OK);
    EXPECT_EQ(foveal_communicator_wait(communicator, nullptr), FOVEAL_CUDA_ERROR);
    EXPECT_EQ(nccl.is_aborted(comm), 1);
    foveal_communicator_destroy(communicator);
    nccl.free(comm);
}

TEST(Nccl, ASendThatFailsLeavesNoGroupOpen) {
    const FakeNccl nccl;
    foveal_nccl_comm_t comm = nullptr;
    const FakeNcclBehaviour behaviour{.send_fails = 1};
    nccl.init_all(&comm, 1, &behaviour);
    {
        foveal_communicator communicator(foveal::parallel::nccl_transport(comm, FOVEAL_FAKE_NCCL), 1);
        communicator.begin();
        EXPECT_EQ(nccl.open_groups(), 1);
        EXPECT_THROW(communicator.send("x", 1, 0, nullptr), foveal::Error);
        EXPECT_EQ(nccl.open_groups(), 0);
    }
    nccl.free(comm);
}

TEST(Nccl, ALibraryThatIsNotThereOrIsNoNccl) {
    int any = 0;
    foveal_communicator* communicator = nullptr;
    EXPECT_EQ(foveal_communicator_create_nccl(&any, "libnccl-of-nobody.so", 1, &communicator), FOVEAL_UNSUPPORTED);
    EXPECT_NE(std::string(foveal_last_error()).find("NCCL cannot be loaded: libnccl-of-nobody.so"), std::string::npos)
        << foveal_last_error();
    EXPECT_EQ(foveal_communicator_create_nccl(&any, "libm.so.6", 1, &communicator), FOVEAL_UNSUPPORTED);
    EXPECT_NE(std::string(foveal_last_error()).find("libm.so.6 has no ncclGroupStart"), std::string::npos)
        << foveal_last_error();
    EXPECT_EQ(foveal_communicator_create_nccl(nullptr, nullptr, 1, &communicator), FOVEAL_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace foveal_testing
