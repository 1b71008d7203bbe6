// cpu/exp.hpp and the rounding in cpu/softmax.hpp on every SIMD target that this CPU has. Included once for each
// target.
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/cpu/exp_test.cpp"
#include <hwy/foreach_target.h>

#include "cpu/exp.hpp"
#include "cpu/softmax.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

int64_t VectorLanes() { return lanes(); }

// x, y: [lanes()]
void Exp(const float* x, float scale, int bias, float* y) {
    hn::StoreU(ScaledExp(scale, bias)(hn::LoadU(F32(), x)), F32(), y);
}

void ExpOfWeight(const float* x, float scale, int bias, float* y) {
    hn::StoreU(WeightExp(scale, bias)(hn::LoadU(F32(), x)), F32(), y);
}

void Tanh(const float* x, float* y) { hn::StoreU(tanh_of(hn::LoadU(F32(), x)), F32(), y); }

void Round(const float* x, int shift, float smallest_normal, float* y) {
    hn::StoreU(RoundMantissa(shift, smallest_normal)(hn::LoadU(F32(), x)), F32(), y);
}

bool HasFma() { return HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM_A64; }

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/cpu/each_target.hpp"

namespace foveal::cpu {

HWY_EXPORT(VectorLanes);
HWY_EXPORT(Exp);
HWY_EXPORT(ExpOfWeight);
HWY_EXPORT(Tanh);
HWY_EXPORT(Round);
HWY_EXPORT(HasFma);

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float exp_of(float x, float scale, int bias) {
    std::vector<float> values(static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)()), x);
    HWY_DYNAMIC_DISPATCH(Exp)(values.data(), scale, bias, values.data());
    for (const float value : values) EXPECT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(values[0]));
    return values[0];
}

// Calls body(x, y) for floats x from -0 down to -inf, every step-th, and their images y.
template <class Map, class Body>
void for_negative_floats(uint32_t step, Map map, Body body) {
    const size_t n = static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)());
    std::vector<float> x(n), y(n);
    const uint32_t last = std::bit_cast<uint32_t>(-kInfinity);
    for (uint32_t bits = 0x80000000; bits <= last; bits += step * static_cast<uint32_t>(n)) {
        for (size_t i = 0; i < n; ++i)
            x[i] = std::bit_cast<float>(std::min(bits + step * static_cast<uint32_t>(i), last));
        map(x.data(), y.data());
        for (size_t i = 0; i < n; ++i) body(x[i], y[i]);
    }
}

TEST(CpuExp, ErrorIsBelowOneUlpOverTheWholeRange) {
    for_each_target([] {
        const bool fma = HWY_DYNAMIC_DISPATCH(HasFma)();
        for (const float scale : {1.0f, 0.125f, 0.088388346f, 37.5f}) {
            for (const int bias : {0, 12, 31}) {
                double worst = 0;
                float worst_x = 0;
                for_negative_floats(
                    1009,
                    [&](const float* x, float* y) {
                        HWY_DYNAMIC_DISPATCH(Exp)
                        (x, scale, bias, y);
                    },
                    [&](float x, float y) {
                        const double exponent = double{scale} * double{x};
                        const double exact = std::ldexp(std::exp(exponent), -bias);
                        if (exact < 0x1p-125) {
                            EXPECT_LE(y, 0x1.001p-125f) << x;
                            EXPECT_GE(y, 0.0f) << x;
                            if (exact < 0x1p-127) {
                                EXPECT_EQ(y, 0.0f) << x;
                            }
                            return;
                        }
                        const double allowed = 0x1p-23 + (fma ? 0 : -exponent * 0x1p-24);
                        const double error = std::abs(double{y} - exact) / exact / allowed;
                        if (error > worst) {
                            worst = error;
                            worst_x = x;
                        }
                    });
                EXPECT_LT(worst, 1.0) << "scale " << scale << ", bias " << bias << ", at " << worst_x;
                EXPECT_GT(worst, 0.1) << "nothing was measured";
            }
        }
    });
}

// exp.hpp states the bound; where the CPU has no products of bf16 it is the function above.
TEST(CpuExp, WeightsErrorsAreAsStated) {
    for_each_target([] {
        for (const float scale : {1.0f, 0.125f, 0.088388346f, 37.5f}) {
            for (const int bias : {0, 12}) {
                for_negative_floats(
                    4099,
                    [&](const float* x, float* y) {
                        HWY_DYNAMIC_DISPATCH(ExpOfWeight)
                        (x, scale, bias, y);
                    },
                    [&](float x, float y) {
                        const double exponent = double{scale} * double{x},
                                     exact = std::ldexp(std::exp(exponent), -bias);
                        if (exact < 0x1p-125) {
                            ASSERT_LT(y, 0x1p-124f) << x;
                            return;
                        }
                        ASSERT_LE(std::abs(y / exact - 1), 2.5e-7 + (std::abs(exponent) + bias) * 0x1p-23) << x;
                    });
            }
            for (const int bias : {0, 31}) {
                std::vector<float> x(static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)()), 0.0f);
                const auto at = [&](float value) {
                    std::vector<float> values(x.size(), value);
                    HWY_DYNAMIC_DISPATCH(ExpOfWeight)(values.data(), scale, bias, values.data());
                    return values[0];
                };
                EXPECT_EQ(at(0.0f), std::ldexp(1.0f, -bias));
                EXPECT_EQ(at(-kInfinity), 0.0f);
                EXPECT_TRUE(std::isnan(at(std::numeric_limits<float>::quiet_NaN())));
            }
        }
    });
}

TEST(CpuExp, SpecialValues) {
    for_each_target([] {
        for (const float scale : {1.0f, 0.125f, 1e-30f, 1e30f, std::numeric_limits<float>::max()}) {
            for (const int bias : {0, 31}) {
                const float one = std::ldexp(1.0f, -bias);
                EXPECT_EQ(exp_of(0.0f, scale, bias), one);
                EXPECT_EQ(exp_of(-0.0f, scale, bias), one);
                EXPECT_EQ(exp_of(-kInfinity, scale, bias), 0.0f);
                EXPECT_EQ(exp_of(-std::numeric_limits<float>::denorm_min(), 1.0f, bias), one);
                // Every payload: a NaN must not be shifted into a number.
                for (uint32_t payload = 1; payload < 0x800000; payload = payload * 2 + 1) {
                    EXPECT_TRUE(std::isnan(exp_of(std::bit_cast<float>(0x7F800000 | payload), scale, bias))) << payload;
                    EXPECT_TRUE(std::isnan(exp_of(std::bit_cast<float>(0xFF800000 | payload), scale, bias))) << payload;
                }
            }
        }
        EXPECT_EQ(exp_of(-std::numeric_limits<float>::max(), 1.0f, 0), 0.0f);
        EXPECT_EQ(exp_of(-88.0f, 1.0f, 0), 0.0f) << "below 2^-126";
        EXPECT_GT(exp_of(-87.0f, 1.0f, 0), 0.0f);
        EXPECT_EQ(exp_of(-1e30f, 1e-33f, 0), 0.999000490f) << "the scale counts, not x alone";
    });
}

TEST(CpuExp, TanhErrorIsBelowOneAndAHalfUlp) {
    for_each_target([] {
        double worst = 0;
        float worst_x = 0;
        for_negative_floats(
            97,
            [](const float* x, float* y) {
                HWY_DYNAMIC_DISPATCH(Tanh)
                (x, y);
            },
            [&](float x, float y) {
                if (x > -0x1p-126f) return;  // subnormal: rounded to what there is
                const double exact = std::tanh(double{x});
                const double error = std::abs(double{y} - exact) / std::abs(exact);
                if (error > worst) {
                    worst = error;
                    worst_x = x;
                }
            });
        EXPECT_LT(worst, std::exp2(-22.5)) << "at " << worst_x;
        EXPECT_GT(worst, 0x1p-25) << "nothing was measured";
    });
}

TEST(CpuExp, TanhOfSpecialValues) {
    for_each_target([] {
        const auto tanh_at = [](float x) {
            std::vector<float> values(static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)()), x);
            HWY_DYNAMIC_DISPATCH(Tanh)(values.data(), values.data());
            return values[0];
        };
        EXPECT_EQ(tanh_at(0.0f), 0.0f);
        EXPECT_EQ(tanh_at(kInfinity), 1.0f);
        EXPECT_EQ(tanh_at(-kInfinity), -1.0f);
        EXPECT_EQ(tanh_at(1e30f), 1.0f);
        EXPECT_EQ(tanh_at(-std::numeric_limits<float>::max()), -1.0f);
        EXPECT_TRUE(std::isnan(tanh_at(std::numeric_limits<float>::quiet_NaN())));
        for (const float x : {1e-30f, 0.1f, 0.5f, 3.0f, 20.0f}) EXPECT_EQ(tanh_at(-x), -tanh_at(x)) << x;
    });
}

// x >= 0 to `bits` significant bits, and no finer than smallest_quantum; to nearest even.
float rounded(float x, int bits, float smallest_quantum) {
    const float quantum = std::max(std::ldexp(1.0f, std::ilogb(x) + 1 - bits), smallest_quantum);
    return static_cast<float>(std::nearbyint(double{x} / double{quantum}) * double{quantum});
}

TEST(CpuExp, ProbabilitiesAreRoundedToNearestEven) {
    for_each_target([] {
        const struct {
            int shift, bits;
            float smallest_normal, smallest_quantum;
        } formats[] = {{16, 8, 0x1p-126f, 0x1p-133f}, {13, 11, 0x1p-14f, 0x1p-24f}};
        for (const auto& format : formats) {
            // Probabilities, so up to 1, and not below what ScaledExp returns.
            for_negative_floats(
                4093,
                [&](const float* x, float* y) {
                    const size_t n = static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)());
                    std::vector<float> magnitude(n);
                    for (size_t i = 0; i < n; ++i) magnitude[i] = -x[i];
                    HWY_DYNAMIC_DISPATCH(Round)(magnitude.data(), format.shift, format.smallest_normal, y);
                },
                [&](float x, float y) {
                    if (-x < 0x1p-126f || -x > 1) return;
                    EXPECT_EQ(y, rounded(-x, format.bits, format.smallest_quantum)) << -x << ", shift " << format.shift;
                });
            // Ties, at every exponent.
            for (int exponent = 0; exponent > -100; --exponent) {
                for (const float significand : {1.0f + 0x1p-8f, 1.0f + 0x1.8p-7f, 1.0f + 0x1p-11f, 1.0f + 0x1.8p-10f}) {
                    const float x = std::ldexp(significand, exponent);
                    std::vector<float> values(static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)()), x);
                    HWY_DYNAMIC_DISPATCH(Round)(values.data(), format.shift, format.smallest_normal, values.data());
                    EXPECT_EQ(values[0], rounded(x, format.bits, format.smallest_quantum)) << x;
                }
            }
        }
    });
}

}  // namespace
}  // namespace foveal::cpu
#endif
