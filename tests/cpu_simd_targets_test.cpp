// The CPU backend on every SIMD target that this CPU has, not only on the one it would choose.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <set>
#include <string>

#include "cpu/tile.hpp"
#include "cpu_each_target.hpp"
#include "run_suite.hpp"

namespace foveal_testing {
namespace {

TEST(CpuSimdTargets, CornerSuite) {
    std::set<std::string> used;
    const int targets = foveal::cpu::for_each_target([&] {
        used.insert(foveal::cpu::simd_target());
        std::printf("%s: ", foveal::cpu::simd_target());
        run_suite("corner", FOVEAL_BACKEND_CPU);
    });
    EXPECT_EQ(used.size(), static_cast<size_t>(targets)) << "a forced target was not used";
}

}  // namespace
}  // namespace foveal_testing
