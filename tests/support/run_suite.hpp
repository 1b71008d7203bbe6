// Runs a whole suite inside a GoogleTest test and accounts for every case.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/suites.hpp"

namespace foveal_testing {

struct SuiteCounts {
    int passed = 0;
    int failed = 0;
    int unsupported = 0;
};

// What a backend may not refuse.
inline bool must_be_supported(const Case& c, foveal_backend backend) {
    if (backend == FOVEAL_BACKEND_CPU) return true;
    const auto head_dim = [](int64_t d) { return d % 8 == 0 && d <= 512; };
    return head_dim(c.head_dim) && head_dim(c.head_dim_v) && c.dtype != FOVEAL_F32 && c.keys_dtype() != FOVEAL_E4M3;
}

// AddressSanitizer takes the oracle's side of the time, ten times over: there a list is thinned out.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// every: only each n-th case, for runs that repeat a list under other conditions.
inline SuiteCounts run_suite(const std::string& name, foveal_backend backend, size_t every = 1) {
    constexpr int kPrintedFailures = 10;
    Suite list = correctness_suite(name, backend);
    if (every > 1) {
        std::vector<Case> thinned;
        for (size_t n = 0; n < list.cases.size(); n += every) thinned.push_back(list.cases[n]);
        list.cases = std::move(thinned);
        list.left_out += " all but each " + std::to_string(every) + "th case";
    }
    SuiteCounts counts;
    std::map<std::string, int> refusals;
    for (const Case& c : list.cases) {
        const CheckResult result = check_case(c, backend);
        if (result.status == CheckResult::Status::kUnsupported) {
            ++counts.unsupported;
            ++refusals[result.message];
            EXPECT_FALSE(must_be_supported(c, backend)) << to_text(c) << "\n" << result.message;
        } else if (result.passed()) {
            ++counts.passed;
        } else if (++counts.failed <= kPrintedFailures) {
            ADD_FAILURE() << to_text(c) << "\n" << result.message << "\n" << result.verdict.summary();
        }
    }
    std::printf("%s on %s: %zu cases, %d passed, %d failed, %d unsupported\n", name.c_str(), backend_name(backend),
                list.cases.size(), counts.passed, counts.failed, counts.unsupported);
    if (!list.left_out.empty()) std::printf("  left out: %s\n", list.left_out.c_str());
    for (const auto& [message, times] : refusals) std::printf("  unsupported, %d cases: %s\n", times, message.c_str());
    EXPECT_EQ(counts.failed, 0) << "the first " << kPrintedFailures << " are printed above";
    EXPECT_GT(counts.passed, 0);
    return counts;
}

}  // namespace foveal_testing
