// The correctness and corner lists on the CPU backend (contract 1.10 and much of the rest).
#include <gtest/gtest.h>

#include "tests/support/run_suite.hpp"

namespace foveal_testing {
namespace {

constexpr size_t kEvery = kAddressSanitizer ? 5 : 1;

TEST(CpuSuites, Correctness) { run_suite("correctness", FOVEAL_BACKEND_CPU, kEvery); }

TEST(CpuSuites, Corner) { run_suite("corner", FOVEAL_BACKEND_CPU, kEvery); }

}  // namespace
}  // namespace foveal_testing
