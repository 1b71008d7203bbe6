// The grid on the CPU backend, and that it bites: with an option dropped on the way to the library, it fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/grid.hpp"
#include "tests/support/run_suite.hpp"

namespace foveal_testing {
namespace {

constexpr size_t kEvery = kAddressSanitizer ? 10 : 1;

TEST(Grid, IsLargeEnoughForTheGpu) {
    const std::vector<Case> cases = grid(FOVEAL_BACKEND_SM90);
    EXPECT_GE(cases.size(), 5000u);
    for (const Case& c : cases) EXPECT_TRUE(must_be_supported(c, FOVEAL_BACKEND_SM90)) << to_text(c);
}

// The cases with dropout are the others once more, as many as it takes for every word to stand beside it.
TEST(Grid, EveryWordStandsBesideDropout) {
    const auto words_of = [](const Case& c) {
        std::istringstream words(to_text(c));
        return std::set<std::string>(std::istream_iterator<std::string>(words), {});
    };
    std::set<std::string> alone, beside;
    for (const Case& c : grid(FOVEAL_BACKEND_CPU)) (c.dropout > 0 ? beside : alone).merge(words_of(c));
    for (const std::string& word : alone) {
        const bool is_length = word.find("lens=") != std::string::npos || word.find("used_") != std::string::npos ||
                               (word[0] == 's' && word.find_first_of("0123456789") <= 2);
        EXPECT_TRUE(is_length || beside.count(word) > 0) << word;
    }
}

TEST(Grid, OnTheCpu) { run_suite("grid", FOVEAL_BACKEND_CPU, kEvery); }

// A library that ignores something.
struct Mutation {
    std::string name;
    std::function<void(foveal_forward_args&)> drop;
};

void share_dimension(foveal_tensor& tensor, int dimension) {
    if (tensor.rank != 0) tensor.shape[dimension] = 1;
}

const std::vector<Mutation>& mutations() {
    static const std::vector<Mutation> all = {
        {"softcap", [](auto& args) { args.softcap = 0; }},
        {"alibi_slopes", [](auto& args) { args.alibi_slopes.rank = 0; }},
        {"alibi_slopes of each sequence",
         [](auto& args) {
             foveal_tensor& slopes = args.alibi_slopes;
             if (slopes.rank == 2) slopes.rank = 1, slopes.shape[0] = slopes.shape[1], slopes.stride[0] = 1;
         }},
        {"sinks", [](auto& args) { args.sinks.rank = 0; }},
        {"bias", [](auto& args) { args.bias.rank = 0; }},
        {"bias of each sequence", [](auto& args) { share_dimension(args.bias, 0); }},
        {"bias of each head", [](auto& args) { share_dimension(args.bias, 1); }},
        {"mask", [](auto& args) { args.mask.rank = 0; }},
        {"mask of each sequence", [](auto& args) { share_dimension(args.mask, 0); }},
        {"mask of each head", [](auto& args) { share_dimension(args.mask, 1); }},
        {"chunk", [](auto& args) { args.chunk = 0; }},
        {"window_left", [](auto& args) { args.window_left = FOVEAL_UNLIMITED; }},
        {"window_right", [](auto& args) { args.window_right = FOVEAL_UNLIMITED; }},
        {"window_left by one", [](auto& args) { args.window_left += args.window_left >= 0; }},
        {"window_right by one", [](auto& args) { args.window_right += args.window_right >= 0; }},
        {"chunk by one", [](auto& args) { args.chunk += args.chunk > 0; }},
        {"alignment", [](auto& args) { args.alignment = FOVEAL_BOTTOM_RIGHT; }},
        {"the other alignment", [](auto& args) { args.alignment = FOVEAL_TOP_LEFT; }},
        {"seqused_q", [](auto& args) { args.seqused_q.rank = 0; }},
        {"seqused_k", [](auto& args) { args.seqused_k.rank = 0; }},
        {"lse", [](auto& args) { args.lse.rank = 0; }},
        {"dropout", [](auto& args) { args.dropout_p = 0, args.dropout_state = nullptr; }},
        {"dropout by a little", [](auto& args) { args.dropout_p += args.dropout_p > 0 ? 0x1p-6f : 0; }},
    };
    return all;
}

// The grid's first case that fails if `forward` stands for the library, of those that `concerns` it; "" if none does.
std::string first_failure(const std::function<bool(const foveal_forward_args&)>& concerns, const Forward& forward) {
    static const std::vector<Case> cases = correctness_suite("grid", FOVEAL_BACKEND_CPU).cases;
    int tried = 0;
    for (const Case& c : cases) {
        if (!concerns(shape_args(c, FOVEAL_BACKEND_CPU))) continue;
        ++tried;
        const CheckResult result = check_case(c, FOVEAL_BACKEND_CPU, forward);
        if (result.status != CheckResult::Status::kFail) continue;
        std::printf("  noticed by case %d of those concerned: %s\n", tried, to_text(c).c_str());
        return result.message;
    }
    return "";
}

bool differ(const foveal_forward_args& a, const foveal_forward_args& b) { return std::memcmp(&a, &b, sizeof a) != 0; }

TEST(Grid, NoticesEachDroppedOption) {
    for (const Mutation& mutation : mutations()) {
        const auto dropped = [&mutation](foveal_forward_args args) {
            mutation.drop(args);
            return args;
        };
        std::printf("%s\n", mutation.name.c_str());
        const std::string failure =
            first_failure([&](const foveal_forward_args& args) { return differ(args, dropped(args)); },
                          [&](const foveal_forward_args& args) { return call_forward(dropped(args)); });
        EXPECT_NE(failure.find("rerun: foveal check"), std::string::npos) << mutation.name << ": " << failure;
    }
}

// Elements from the first of a view to its last.
int64_t span_of(const foveal_tensor& view) {
    int64_t span = 1;
    for (int i = 0; i < view.rank; ++i) span += std::max<int64_t>(view.shape[i] - 1, 0) * view.stride[i];
    return span;
}

TEST(Grid, NoticesALogSumExpWithoutTheSink) {
    const auto concerns = [](const foveal_forward_args& args) { return args.sinks.rank != 0 && args.lse.rank != 0; };
    const std::string failure = first_failure(concerns, [](const foveal_forward_args& args) {
        const foveal_status status = call_forward(args);
        if (status != FOVEAL_OK) return status;
        foveal_forward_args without = args;
        without.sinks.rank = 0;
        std::vector<float> out(static_cast<size_t>(span_of(args.out)));
        without.out.data = out.data();
        return call_forward(without);
    });
    EXPECT_NE(failure.find("lse"), std::string::npos) << failure;
}

}  // namespace
}  // namespace foveal_testing
