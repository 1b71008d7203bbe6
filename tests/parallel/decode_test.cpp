// Decoding over caches whose keys lie in turn on all ranks is that of one device (contract 1.15), on the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "tests/support/check.hpp"

namespace foveal_testing {
namespace {

int64_t bytes_of(const foveal_tensor& t) { return t.dtype == FOVEAL_F32 ? 4 : 2; }

foveal_tensor packed(void* data, foveal_dtype dtype, std::vector<int64_t> shape) {
    foveal_tensor t{};
    t.data = data;
    t.dtype = dtype;
    t.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) t.shape[i] = shape[i], t.stride[i] = stride;
    return t;
}

// One rank's part of a cache, in pages that lie anywhere; what holds no key is NaN. And its results.
struct DecodeRank {
    std::vector<std::byte> k, v, out;
    std::vector<int32_t> table, used;
    std::vector<float> lse;
    std::unique_ptr<std::byte, decltype(&std::free)> workspace{nullptr, &std::free};
    foveal_forward_args forward{};
    foveal_parallel_decode_args args{};
    std::string message;
};

struct Dealing {
    int32_t ranks;
    int64_t span, page_size;
    std::function<void(int32_t rank, DecodeRank& of)> before_call = {};
};

void fill(DecodeRank& of, int32_t rank, const foveal_forward_args& whole, const Dealing& dealing) {
    const int64_t batch = whole.q.shape[0];
    const auto* const lengths = static_cast<const int32_t*>(whole.seqused_k.data);
    int64_t most = 1;
    for (int64_t b = 0; b < batch; ++b) {
        of.used.push_back(static_cast<int32_t>(foveal_dealt_keys(lengths[b], dealing.span, rank, dealing.ranks)));
        most = std::max(most, (of.used.back() + dealing.page_size - 1) / dealing.page_size);
    }
    of.table.resize(static_cast<size_t>(batch * most));
    std::iota(of.table.begin(), of.table.end(), 0);
    std::shuffle(of.table.begin(), of.table.end(), std::mt19937(static_cast<uint32_t>(rank) + 1));
    const auto cache = [&](const foveal_tensor& from, std::vector<std::byte>& memory) {
        const int64_t row_bytes = from.shape[2] * from.shape[3] * bytes_of(from);
        memory.assign(static_cast<size_t>(batch * most * dealing.page_size * row_bytes), std::byte{0xFF});
        for (int64_t b = 0; b < batch; ++b) {
            for (int64_t j = 0, own = 0; j < lengths[b]; ++j) {
                if (j / dealing.span % dealing.ranks != rank) continue;
                const int64_t page = of.table[static_cast<size_t>(b * most + own / dealing.page_size)];
                const int64_t row = page * dealing.page_size + own++ % dealing.page_size;
                for (int64_t head = 0; head < from.shape[2]; ++head)
                    std::memcpy(memory.data() + row * row_bytes + head * from.shape[3] * bytes_of(from),
                                static_cast<const std::byte*>(from.data) +
                                    (b * from.stride[0] + j * from.stride[1] + head * from.stride[2]) * bytes_of(from),
                                static_cast<size_t>(from.shape[3] * bytes_of(from)));
            }
        }
        return packed(memory.data(), from.dtype, {batch * most, dealing.page_size, from.shape[2], from.shape[3]});
    };
    of.forward = whole;
    of.forward.k = cache(whole.k, of.k);
    of.forward.v = cache(whole.v, of.v);
    of.forward.block_table = packed(of.table.data(), FOVEAL_I32, {batch, most});
    of.forward.seqused_k = packed(of.used.data(), FOVEAL_I32, {batch});
    of.out.assign(static_cast<size_t>(batch * whole.out.shape[2] * whole.out.shape[3] * bytes_of(whole.out)),
                  std::byte{0xFF});
    of.forward.out = packed(of.out.data(), whole.out.dtype, {batch, 1, whole.out.shape[2], whole.out.shape[3]});
    of.lse.assign(static_cast<size_t>(batch * whole.out.shape[2]), NAN);
    if (whole.lse.rank != 0) of.forward.lse = packed(of.lse.data(), FOVEAL_F32, {batch, whole.out.shape[2], 1});
    foveal_parallel_decode_args_init(&of.args);
    of.args.forward = &of.forward;
}

void run(DecodeRank& of, int32_t rank, foveal_communicator* communicator, const Dealing& dealing) {
    uint64_t bytes = 0;
    if (foveal_parallel_decode_workspace_bytes(&of.args, dealing.ranks, &bytes) != FOVEAL_OK) {
        of.message = foveal_last_error();
        foveal_communicator_abort(communicator);
        return;
    }
    bytes = (bytes + 255) / 256 * 256;
    of.workspace.reset(static_cast<std::byte*>(std::aligned_alloc(256, bytes)));
    std::memset(of.workspace.get(), 0, bytes);
    of.args.workspace = of.workspace.get();
    of.args.workspace_bytes = bytes;
    if (dealing.before_call) dealing.before_call(rank, of);
    for (int call = 0; call < 2 && of.message.empty(); ++call)  // in the memory that the first has left
        if (foveal_parallel_decode(communicator, &of.args, nullptr) != FOVEAL_OK) of.message = foveal_last_error();
    // Where other calls, which may have the same workspace, look for lengths of zero.
    constexpr int64_t kZeroBytes = 65536 * 4;
    if (of.message.empty() && std::any_of(of.workspace.get(), of.workspace.get() + kZeroBytes,
                                          [](std::byte byte) { return byte != std::byte{0}; }))
        of.message = "the workspace's first zeros are overwritten";
}

// Every rank's call; rank 0's results are `whole`'s. Messages, "" of those that are well.
std::vector<std::string> decode_over(const foveal_forward_args& whole, const Dealing& dealing) {
    const auto count = static_cast<size_t>(dealing.ranks);
    std::vector<foveal_communicator*> communicators(count);
    EXPECT_EQ(foveal_communicator_create_in_process(dealing.ranks, 60, communicators.data()), FOVEAL_OK);
    std::vector<DecodeRank> of(count);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i) fill(of[i], static_cast<int32_t>(i), whole, dealing);
    for (size_t i = 0; i < count; ++i)
        threads.emplace_back([&, i] { run(of[i], static_cast<int32_t>(i), communicators[i], dealing); });
    for (std::thread& thread : threads) thread.join();
    std::vector<std::string> messages;
    for (size_t i = 0; i < count; ++i) {
        foveal_communicator_destroy(communicators[i]);
        if (of[i].message.empty() && (of[i].out != of[0].out || std::memcmp(of[i].lse.data(), of[0].lse.data(),
                                                                            of[0].lse.size() * sizeof(float)) != 0))
            of[i].message = "other bits than rank 0's";
        messages.push_back(of[i].message);
    }
    const int64_t row_bytes = whole.out.shape[3] * bytes_of(whole.out);
    for (int64_t b = 0; b < whole.q.shape[0]; ++b) {
        for (int64_t head = 0; head < whole.q.shape[2]; ++head) {
            const int64_t number = b * whole.q.shape[2] + head;
            std::memcpy(static_cast<std::byte*>(whole.out.data) +
                            (b * whole.out.stride[0] + head * whole.out.stride[2]) * bytes_of(whole.out),
                        of[0].out.data() + number * row_bytes, static_cast<size_t>(row_bytes));
            if (whole.lse.rank != 0)
                static_cast<float*>(whole.lse.data)[b * whole.lse.stride[0] + head * whole.lse.stride[1]] =
                    of[0].lse[static_cast<size_t>(number)];
        }
    }
    return messages;
}

TEST(DecodeOverRanks, IsThatOfOneDevice) {
    const char* const problems[] = {"b4 sq1 sk300 hq8 hk2 d64 bf16 used_k=300,0,17,129 lse",
                                    "b4 sq1 sk300 hq8 hk2 d64 f16 used_k=300,1,2,299 sinks lse",
                                    "b3 sq1 sk200 hq6 hk3 d40 dv24 f32 used_k=200,5,64 softcap20 sinks5 causal lse",
                                    "b2 sq1 sk500 hq4 hk1 d128 bf16 used_k=500,499 sd10",
                                    "b1 sq1 sk900 hq4 hk4 d32 f32 used_k=900 scale0.3 lse"};
    for (const char* const text : problems) {
        for (const int32_t ranks : {1, 2, 3, 4, 7, 8}) {
            for (const Dealing& dealing : {Dealing{ranks, 1, 16}, Dealing{ranks, 16, 16}, Dealing{ranks, 5, 3}}) {
                const CheckResult result =
                    check_case(parse_case(text), FOVEAL_BACKEND_CPU, [&](const foveal_forward_args& whole) {
                        for (const std::string& message : decode_over(whole, dealing)) EXPECT_EQ(message, "") << text;
                        return foveal_status{FOVEAL_OK};
                    });
                EXPECT_TRUE(result.passed()) << text << " over " << ranks << ", span " << dealing.span << "\n"
                                             << result.message;
            }
        }
    }
}

TEST(DecodeOverRanks, KeysAreDealtOutInTurn) {
    for (const int32_t ranks : {1, 2, 3, 8}) {
        for (const int64_t span : {1, 5, 16}) {
            std::vector<int64_t> counted(static_cast<size_t>(ranks));
            for (int64_t length = 0; length < 200; ++length) {
                for (int32_t rank = 0; rank < ranks; ++rank)
                    ASSERT_EQ(foveal_dealt_keys(length, span, rank, ranks), counted[static_cast<size_t>(rank)]);
                ++counted[static_cast<size_t>(length / span % ranks)];
            }
        }
    }
    EXPECT_EQ(foveal_dealt_keys(10, 0, 0, 2), 0);
    EXPECT_EQ(foveal_dealt_keys(10, 1, 2, 2), 0);
}

TEST(DecodeOverRanks, ARankThatFailsMakesTheOthersFail) {
    const auto data = make_case_data(parse_case("b2 sq1 sk90 h2 d32 f32 used_k=90,40"), FOVEAL_BACKEND_CPU);
    const std::vector<std::string> messages = decode_over(data->args(), {3, 1, 16, [](int32_t rank, DecodeRank& of) {
                                                                             if (rank == 1) of.args.workspace_bytes = 1;
                                                                         }});
    for (size_t rank = 0; rank < 3; ++rank)
        EXPECT_NE(messages[rank].find(rank == 1 ? "workspace_bytes is 1" : "rank 1 has failed"), std::string::npos)
            << messages[rank];
}

TEST(DecodeOverRanks, RefusesByName) {
    const auto data = make_case_data(parse_case("b2 sq1 sk90 h2 d32 f32 used_k=90,40 alibi"), FOVEAL_BACKEND_CPU);
    const auto several = make_case_data(parse_case("b2 sq3 sk90 h2 d32 f32 used_k=90,40"), FOVEAL_BACKEND_CPU);
    foveal_forward_args plain = data->args();
    plain.alibi_slopes = {};
    const auto changed = [&](const std::function<void(foveal_forward_args&)>& change) {
        foveal_forward_args args = plain;
        change(args);
        return args;
    };
    const struct {
        foveal_forward_args forward;
        int32_t ranks;
        const char* message;
    } cases[] = {
        {data->args(), 2, "forward.alibi_slopes is present; of keys that lie in turn"},
        {several->args(), 2, "forward.q has 3 rows a sequence"},
        {changed([](auto& f) { f.window_left = 7; }), 2, "forward.window_left is 7"},
        {changed([](auto& f) { f.chunk = 7; }), 2, "forward.chunk is 7"},
        {changed([](auto& f) { f.dropout_p = 0.5f; }), 2, "forward.dropout_p is 0.5"},
        {changed([](auto& f) { f.window_right = 0, f.alignment = FOVEAL_TOP_LEFT; }), 2, "forward.alignment is"},
        {changed([](auto& f) { f.backend = FOVEAL_BACKEND_AUTO; }), 2, "forward.backend is 0"},
        {plain, 33, "ranks is 33"},
        {plain, 0, "ranks is 0"}};
    for (const auto& one : cases) {
        foveal_parallel_decode_args args;
        foveal_parallel_decode_args_init(&args);
        args.forward = &one.forward;
        uint64_t bytes = 0;
        EXPECT_NE(foveal_parallel_decode_workspace_bytes(&args, one.ranks, &bytes), FOVEAL_OK) << one.message;
        EXPECT_NE(std::string(foveal_last_error()).find(one.message), std::string::npos) << foveal_last_error();
    }
}

}  // namespace
}  // namespace foveal_testing
