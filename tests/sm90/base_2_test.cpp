// Scores in base 2 up to the ends of fp32 (sm90/scores/base_2.hpp).
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <numbers>

#include "sm90/scores/base_2.hpp"

namespace foveal::sm90 {
namespace {

TEST(Base2, KeepsTheOrderAndEveryDistanceFinite) {
    float before = to_base_2(-FLT_MAX);
    EXPECT_TRUE(std::isfinite(before));
    EXPECT_TRUE(std::isfinite(to_base_2(FLT_MAX) - before));
    for (float x = -FLT_MAX; x < FLT_MAX; x += 0x1p120F) {
        const float now = to_base_2(x);
        ASSERT_GE(now, before) << x;
        if (x > -FLT_MAX) {
            ASSERT_GT(now - before, 1e30F) << x;
        }
        before = now;
    }
}

TEST(Base2, IsLog2EUpToItsEnd) {
    for (const float x : {0.0F, 1e-45F, -1e-38F, 3.0F, -1e9F, 1e30F, kStraightEnd, -kStraightEnd})
        EXPECT_FLOAT_EQ(to_base_2(x), x * std::numbers::log2e_v<float>);
    EXPECT_NEAR(to_base_2(1.001F * kStraightEnd) / to_base_2(kStraightEnd), 1.000125F, 1e-6F);
}

TEST(Base2, AndBack) {
    for (const float x :
         {0.0F, -1e-30F, 3.0F, -1e9F, 1e30F, -4e37F, 5e37F, -1e38F, 2.5e38F, -3.39e38F, FLT_MAX, -FLT_MAX}) {
        const float back = from_base_2(to_base_2(x));
        EXPECT_TRUE(std::isfinite(back));
        EXPECT_NEAR(back / (x == 0 ? 1 : x), x == 0 ? 0 : 1, 1e-6F) << x;
    }
}

TEST(Base2, InfinitiesAndNaNStay) {
    EXPECT_EQ(to_base_2(HUGE_VALF), HUGE_VALF);
    EXPECT_EQ(to_base_2(-HUGE_VALF), -HUGE_VALF);
    EXPECT_TRUE(std::isnan(to_base_2(std::nanf(""))));
    EXPECT_EQ(from_base_2(HUGE_VALF), HUGE_VALF);
    EXPECT_EQ(from_base_2(-HUGE_VALF), -HUGE_VALF);
    EXPECT_TRUE(std::isnan(from_base_2(std::nanf(""))));
}

}  // namespace
}  // namespace foveal::sm90
