// Runs a test body once on each SIMD target that this CPU and the including file have. Include it after
// <hwy/highway.h>.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <functional>

namespace foveal::cpu {

// Whoever asks Highway for a target after this gets this one: the setting belongs to libhwy, so libfoveal obeys it too.
inline void force_target(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
}

// The target's name is in the trace of a failure. Returns how many targets there were: never 0.
inline int for_each_target(const std::function<void()>& body) {
    force_target(0);
    const int64_t targets = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS;
    int count = 0;
    for (int64_t rest = targets; rest != 0; rest &= rest - 1) {
        const int64_t target = rest & -rest;
        const ::testing::ScopedTrace trace(__FILE__, __LINE__, hwy::TargetName(target));
        force_target(target);
        body();
        ++count;
    }
    force_target(0);
    EXPECT_GT(count, 0);
    return count;
}

}  // namespace foveal::cpu
