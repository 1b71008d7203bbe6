// The grid of gradients, and that it bites: with an option or a gradient's term dropped on the way to the library, it
// fails.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/contract/backward_fixture.hpp"
#include "tests/support/grid.hpp"
#include "tests/support/parallel.hpp"
#include "tests/support/run_suite.hpp"

namespace foveal_testing {
namespace {

class BackwardGrid : public BackwardTest {};
INSTANTIATE_TEST_SUITE_P(Cpu, BackwardGrid, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, BackwardGrid, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(BackwardGrid, EveryPairOfOptions) {
    constexpr int kPrintedFailures = 10;
    const std::vector<BackwardCase> cases = backward_grid(backend());
    ASSERT_GE(cases.size(), on_gpu() ? 4000u : 900u);
    const size_t every = kAddressSanitizer ? 10 : 1;
    size_t passed = 0, failed = 0;
    std::map<std::string, int> refusals;
    std::vector<CheckResult> results((cases.size() + every - 1) / every);
    const auto check = [&](int64_t n, int64_t) {
        const auto at = static_cast<size_t>(n);
        results[at] = check_backward(cases[at * every], backend());
    };
    if (on_gpu())  // the judge has one core of the many; the CPU backend has all itself
        parallel_for(static_cast<int64_t>(results.size()), check);
    else
        for (size_t n = 0; n < results.size(); ++n) check(static_cast<int64_t>(n), 0);
    for (size_t n = 0; n < results.size(); ++n) {
        const CheckResult& result = results[n];
        if (result.status == CheckResult::Status::kUnsupported)
            ++refusals[result.message];
        else if (result.passed())
            ++passed;
        else if (++failed <= kPrintedFailures)
            ADD_FAILURE() << to_text(cases[n * every]) << "\n" << result.message << "\n" << result.verdict.summary();
    }
    std::printf("gradients on %s: %zu cases, %zu passed, %zu failed\n", backend_name(backend()), cases.size(), passed,
                failed);
    for (const auto& [message, times] : refusals) std::printf("  unsupported, %d cases: %s\n", times, message.c_str());
    EXPECT_EQ(failed, 0u);
    EXPECT_GT(passed, 0u);
    EXPECT_TRUE(on_gpu() || refusals.empty());
}

// A library that ignores something.
struct Mutation {
    std::string name;
    std::function<void(foveal_backward_args&, foveal_forward_args&)> drop;
};

const std::vector<Mutation>& mutations() {
    static const std::vector<Mutation> all = {
        {"dlse", [](auto& b, auto&) { b.dlse.rank = 0; }},
        {"softcap", [](auto&, auto& f) { f.softcap = 0; }},
        {"alibi_slopes", [](auto& b, auto& f) { f.alibi_slopes.rank = b.dalibi_slopes.rank = 0; }},
        {"bias", [](auto& b, auto& f) { f.bias.rank = b.dbias.rank = 0; }},
        {"mask", [](auto&, auto& f) { f.mask.rank = 0; }},
        {"chunk", [](auto&, auto& f) { f.chunk = 0; }},
        {"window_left", [](auto&, auto& f) { f.window_left = FOVEAL_UNLIMITED; }},
        {"window_right", [](auto&, auto& f) { f.window_right = FOVEAL_UNLIMITED; }},
        {"window_left by one", [](auto&, auto& f) { f.window_left += f.window_left >= 0; }},
        {"alignment", [](auto&, auto& f) { f.alignment = FOVEAL_BOTTOM_RIGHT; }},
        {"seqused_q", [](auto&, auto& f) { f.seqused_q.rank = 0; }},
        {"seqused_k", [](auto&, auto& f) { f.seqused_k.rank = 0; }},
        {"dropout", [](auto&, auto& f) { f.dropout_p = 0, f.dropout_state = nullptr; }},
        {"the scale", [](auto&, auto& f) { f.scale = 0.5f; }},
        {"dq", [](auto& b, auto&) { b.dq.rank = 0; }},
        {"dk", [](auto& b, auto&) { b.dk.rank = 0; }},
        {"dv", [](auto& b, auto&) { b.dv.rank = 0; }},
        {"dsinks", [](auto& b, auto&) { b.dsinks.rank = 0; }},
        {"dbias", [](auto& b, auto&) { b.dbias.rank = 0; }},
        {"dalibi_slopes", [](auto& b, auto&) { b.dalibi_slopes.rank = 0; }},
    };
    return all;
}

TEST_P(BackwardGrid, NoticesWhatIsDropped) {
    if (on_gpu()) GTEST_SKIP() << "the judge is the same on the cpu";
    const std::vector<BackwardCase> cases = backward_grid(backend());
    for (const Mutation& mutation : mutations()) {
        std::string failure;
        for (size_t n = 0; n < cases.size() && failure.empty(); ++n) {
            foveal_forward_args forward;
            foveal_backward_args shapes = backward_shape_args(cases[n], backend(), forward);
            const foveal_backward_args shapes_before = shapes;
            const foveal_forward_args forward_before = forward;
            mutation.drop(shapes, forward);
            if (std::memcmp(&shapes, &shapes_before, sizeof shapes) == 0 &&
                std::memcmp(&forward, &forward_before, sizeof forward) == 0)
                continue;
            const CheckResult result = check_backward(cases[n], backend(), [&](const foveal_backward_args& args) {
                foveal_backward_args changed = args;
                foveal_forward_args changed_forward = *args.forward;
                mutation.drop(changed, changed_forward);
                changed.forward = &changed_forward;
                return foveal_backward(&changed, nullptr);
            });
            if (result.status == CheckResult::Status::kFail) failure = result.message;
        }
        EXPECT_NE(failure.find("rerun: foveal check"), std::string::npos) << mutation.name << ": " << failure;
    }
}

}  // namespace
}  // namespace foveal_testing
