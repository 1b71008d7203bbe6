// The correctness and corner lists on the CPU backend (contract 1.10 and much of the rest).
#include <gtest/gtest.h>

#include "run_suite.hpp"

namespace foveal_testing {
namespace {

TEST(CpuSuites, Correctness) { run_suite("correctness", FOVEAL_BACKEND_CPU); }

TEST(CpuSuites, Corner) { run_suite("corner", FOVEAL_BACKEND_CPU); }

}  // namespace
}  // namespace foveal_testing
