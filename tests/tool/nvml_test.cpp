// Clock and power through NVML, with a stand-in for its library, and the order statistics of timings.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "nvml.hpp"
#include "statistics.hpp"

namespace foveal_tool {
namespace {

constexpr const char* kBusId = "0000:01:00.0";

std::shared_ptr<const Nvml> fake_nvml() {
    const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    return Nvml::open((here / "../lib/libfake_nvml.so").c_str());
}

TEST(Nvml, MissingLibraryGivesNothing) {
    EXPECT_EQ(Nvml::open("libdoes-not-exist.so.1"), nullptr);
    EXPECT_EQ(Nvml::open("libm.so.6"), nullptr) << "a library without NVML's functions";
    EXPECT_FALSE(NvmlSampler(nullptr, kBusId).stop().has_value());
}

TEST(Nvml, Reads) {
    const auto nvml = fake_nvml();
    ASSERT_NE(nvml, nullptr);
    EXPECT_EQ(nvml->driver_version(), "999.1");
    const auto reading = nvml->read(kBusId);
    ASSERT_TRUE(reading.has_value());
    EXPECT_GE(reading->sm_mhz, 1000);
    EXPECT_DOUBLE_EQ(reading->watts, 654.321);
    EXPECT_FALSE(nvml->read("0000:02:00.0").has_value()) << "no such GPU";
}

TEST(Nvml, SamplesUntilStopped) {
    const auto nvml = fake_nvml();
    ASSERT_NE(nvml, nullptr);
    const double before = nvml->read(kBusId)->sm_mhz;
    NvmlSampler sampler(nvml, kBusId);
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    const auto reading = sampler.stop();
    const double after = nvml->read(kBusId)->sm_mhz;
    ASSERT_TRUE(reading.has_value());
    EXPECT_GT(after, before + 2) << "more than one sample";
    EXPECT_NEAR(reading->sm_mhz, (before + after) / 2, 0.6) << "the median of clocks that rise evenly";
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(nvml->read(kBusId)->sm_mhz, after + 1) << "nothing is read after stop()";
}

TEST(Statistics, QuantilesInterpolate) {
    EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2);
    EXPECT_DOUBLE_EQ(median({4, 1, 2, 3}), 2.5);
    EXPECT_DOUBLE_EQ(median({7}), 7);
    EXPECT_DOUBLE_EQ(quantile({10, 0}, 0.9), 9);
    EXPECT_DOUBLE_EQ(spread_pct({100, 100, 100}), 0);
    EXPECT_NEAR(spread_pct({90, 95, 100, 105, 110}), 16, 1e-9);
}

}  // namespace
}  // namespace foveal_tool
