// cpu/convert.hpp and cpu/transpose.hpp on every SIMD target that this CPU has. Included once for each target.
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/cpu/convert_test.cpp"
#include <hwy/foreach_target.h>

#include "cpu/convert.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

int64_t VectorLanes() { return lanes(); }

void Load(DType dtype, const void* from, int64_t size, float* to) { row_loader(dtype)(from, size, to); }

void Store(DType dtype, const float* from, int64_t size, void* to) { row_storer(dtype)(from, size, to); }

// rows: [lanes(), 4] with pitch; columns: [4, lanes()]
void Transpose(const float* rows, int64_t pitch, float* columns, float* rows_again) {
    const FourColumns c = load_columns(rows, pitch);
    for (int64_t i = 0; i < kTransposeColumns; ++i) hn::StoreU(c.column[i], F32(), columns + i * lanes());
    store_columns(c, rows_again, pitch);
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <gtest/gtest.h>
#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/cpu/each_target.hpp"

namespace foveal::cpu {

HWY_EXPORT(VectorLanes);
HWY_EXPORT(Load);
HWY_EXPORT(Store);
HWY_EXPORT(Transpose);

namespace {

// What a format is, written down independently of how it is converted.
struct Format {
    DType dtype;
    int mantissa_bits;
    int smallest_exponent;
    int largest_exponent;

    float value(uint32_t bits) const {
        const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
        const int exponent_field = static_cast<int>((bits & 0x7FFF) >> mantissa_bits);
        const float sign = bits & 0x8000 ? -1.0f : 1.0f;
        if (exponent_field == largest_exponent - smallest_exponent + 2) {
            return mantissa ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
        }
        const int hidden = exponent_field ? 1 << mantissa_bits : 0;
        const int exponent = std::max(exponent_field, 1) - 1 + smallest_exponent - mantissa_bits;
        return sign * std::ldexp(static_cast<float>(hidden + static_cast<int>(mantissa)), exponent);
    }

    float nearest(float x) const {
        if (std::isnan(x) || std::isinf(x) || x == 0) return x;
        const int exponent = std::max(std::ilogb(x), smallest_exponent) - mantissa_bits;
        const double y = std::ldexp(std::nearbyint(std::ldexp(double{x}, -exponent)), exponent);
        if (std::abs(y) >= std::ldexp(1.0, largest_exponent + 1)) return std::copysign(HUGE_VALF, x);
        return static_cast<float>(y);
    }
};

constexpr Format kHalfFormats[] = {{DType::bf16, 7, -126, 127}, {DType::f16, 10, -14, 15}};

bool same(float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

hwy::AlignedFreeUniquePtr<float[]> row_of(int64_t size) {
    return hwy::AllocateAligned<float>(static_cast<size_t>(size + HWY_DYNAMIC_DISPATCH(VectorLanes)()));
}

TEST(CpuConvert, EveryHalfIsReadExactly) {
    for_each_target([] {
        std::vector<uint16_t> halves(0x10000);
        for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
        const auto floats = row_of(0x10000);
        for (const Format& format : kHalfFormats) {
            HWY_DYNAMIC_DISPATCH(Load)(format.dtype, halves.data(), 0x10000, floats.get());
            for (uint32_t i = 0; i < 0x10000; ++i) {
                EXPECT_TRUE(same(floats[i], format.value(i))) << name_of(format.dtype) << " " << i << ": " << floats[i];
            }
        }
    });
}

TEST(CpuConvert, FloatsAreRoundedToNearestEven) {
    for_each_target([] {
        std::vector<float> samples;
        for (uint64_t bits = 0; bits <= 0xFFFFFFFF; bits += 65521) {
            samples.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
        }
        // Around every half: itself, the ties beside it, and their neighbours.
        for (const Format& format : kHalfFormats) {
            for (uint32_t i = 0; i < 0x7FFF; ++i) {
                const float a = format.value(i), b = format.value(i + 1);
                if (!std::isfinite(b)) continue;
                const float tie = static_cast<float>((double{a} + double{b}) / 2);
                for (const float x : {a, tie, std::nextafter(tie, a), std::nextafter(tie, b)}) {
                    samples.push_back(x);
                    samples.push_back(-x);
                }
            }
        }
        for (const float x :
             {65504.0f, 65519.0f, 65520.0f, 65536.0f, 1e30f, std::numeric_limits<float>::max(), HUGE_VALF}) {
            samples.push_back(x);
            samples.push_back(-x);
        }
        for (const uint32_t nan : {0x7F800001u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FC00000u, 0xFF800001u}) {
            samples.push_back(std::bit_cast<float>(nan));
        }
        const int64_t size = static_cast<int64_t>(samples.size());
        const auto from = row_of(size), back = row_of(size);
        std::copy(samples.begin(), samples.end(), from.get());
        std::vector<uint16_t> halves(samples.size());
        for (const Format& format : kHalfFormats) {
            HWY_DYNAMIC_DISPATCH(Store)(format.dtype, from.get(), size, halves.data());
            for (size_t i = 0; i < samples.size(); ++i) {
                ASSERT_TRUE(same(format.value(halves[i]), format.nearest(samples[i])))
                    << name_of(format.dtype) << ": " << samples[i] << " became " << format.value(halves[i]);
            }
        }
    });
}

TEST(CpuConvert, RowsOfAnyLengthTouchNothingElse) {
    for_each_target([] {
        const int64_t n = HWY_DYNAMIC_DISPATCH(VectorLanes)();
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
            const int64_t element = bytes_of(dtype);
            for (int64_t size = 0; size <= 3 * n + 1; ++size) {
                const auto from = row_of(size), back = row_of(size);
                for (int64_t i = 0; i < size + n; ++i) from[static_cast<size_t>(i)] = static_cast<float>(i + 1);
                // Exactly as long as the row, so that the address sanitizer sees a read or write beyond it.
                std::vector<unsigned char> stored(static_cast<size_t>(size * element));
                HWY_DYNAMIC_DISPATCH(Store)(dtype, from.get(), size, stored.data());
                HWY_DYNAMIC_DISPATCH(Load)(dtype, stored.data(), size, back.get());
                for (int64_t i = 0; i < (size + n - 1) / n * n; ++i) {
                    EXPECT_EQ(back[static_cast<size_t>(i)], i < size ? static_cast<float>(i + 1) : 0.0f)
                        << size << " " << i;
                }
                std::vector<unsigned char> guarded(static_cast<size_t>(size * element) + 8, 0xA5);
                HWY_DYNAMIC_DISPATCH(Store)(dtype, from.get(), size, guarded.data());
                for (size_t i = stored.size(); i < guarded.size(); ++i) EXPECT_EQ(guarded[i], 0xA5) << size;
            }
        }
    });
}

TEST(CpuConvert, Transpose) {
    for_each_target([] {
        const int64_t n = HWY_DYNAMIC_DISPATCH(VectorLanes)();
        constexpr int64_t kPitch = 7;
        std::vector<float> rows(static_cast<size_t>(n * kPitch)), columns(static_cast<size_t>(4 * n));
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
        std::vector<float> again(rows.size(), -1.0f);
        HWY_DYNAMIC_DISPATCH(Transpose)(rows.data(), kPitch, columns.data(), again.data());
        for (int64_t lane = 0; lane < n; ++lane) {
            for (int64_t c = 0; c < kPitch; ++c) {
                const size_t at = static_cast<size_t>(lane * kPitch + c);
                EXPECT_EQ(again[at], c < 4 ? rows[at] : -1.0f);
                if (c < 4) {
                    EXPECT_EQ(columns[static_cast<size_t>(c * n + lane)], rows[at]);
                }
            }
        }
    });
}

}  // namespace
}  // namespace foveal::cpu
#endif
