// cpu/convert.hpp and cpu/transpose.hpp on every SIMD target that this CPU has. Included once for each target.
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/cpu/convert_test.cpp"
#include <hwy/foreach_target.h>

#include "cpu/convert.hpp"
#include "cpu/dequantise.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

int64_t VectorLanes() { return lanes(); }

void Load(DType dtype, const void* from, int64_t size, float* to) { row_loader(dtype)(from, size, to); }

void Store(DType dtype, const float* from, int64_t size, void* to) { row_storer(dtype)(from, size, to); }

// is_own: the factor is the key's, not all keys'.
void Dequantise(DType to_dtype, float factor, bool is_own, const void* from, int64_t size, void* to) {
    const KeyRows factors{is_own ? reinterpret_cast<const std::byte*>(&factor) : nullptr, 0};
    const Dequantiser dequantiser(to_dtype, is_own ? 2 * factor : factor, factors);
    dequantiser.row(static_cast<const std::byte*>(from), 0, size, static_cast<std::byte*>(to));
}

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
#include <utility>
#include <vector>

#include "tests/cpu/each_target.hpp"

namespace foveal::cpu {

HWY_EXPORT(VectorLanes);
HWY_EXPORT(Load);
HWY_EXPORT(Store);
HWY_EXPORT(Dequantise);
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

// e4m3, written down by its definition.
float e4m3_value(uint32_t code) {
    const uint32_t magnitude = code & 0x7F, fraction = magnitude & 7;
    const int exponent = static_cast<int>(magnitude >> 3);
    const float sign = code & 0x80 ? -1.0f : 1.0f;
    if (magnitude == 0x7F) return std::numeric_limits<float>::quiet_NaN();
    if (exponent == 0) return sign * static_cast<float>(fraction) / 512;
    return sign * std::ldexp(1 + static_cast<float>(fraction) / 8, exponent - 7);
}

std::vector<uint8_t> all_codes() {
    std::vector<uint8_t> codes(256);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
    return codes;
}

TEST(CpuConvert, EveryE4m3IsReadExactlyAndReadsBack) {
    for_each_target([] {
        const std::vector<uint8_t> codes = all_codes();
        const auto floats = row_of(256);
        std::vector<uint8_t> back(256);
        HWY_DYNAMIC_DISPATCH(Load)(DType::e4m3, codes.data(), 256, floats.get());
        HWY_DYNAMIC_DISPATCH(Store)(DType::e4m3, floats.get(), 256, back.data());
        for (uint32_t i = 0; i < 256; ++i) {
            EXPECT_TRUE(same(floats[i], e4m3_value(i))) << i << ": " << floats[i];
            EXPECT_EQ(back[i], codes[i]);
        }
    });
}

// To the nearest; of two to the even code; beyond 448 to 448; NaN alone is NaN.
TEST(CpuConvert, FloatsAreRoundedToE4m3AndSaturate) {
    std::vector<std::pair<float, uint8_t>> samples;
    for (uint8_t code = 0; code < 0x7E; ++code) {
        const float a = e4m3_value(code), b = e4m3_value(code + 1u), tie = (a + b) / 2;
        const auto even = static_cast<uint8_t>(code + code % 2), next = static_cast<uint8_t>(code + 1);
        samples.insert(samples.end(),
                       {{a, code}, {tie, even}, {std::nextafter(tie, a), code}, {std::nextafter(tie, b), next}});
    }
    for (const float x : {448.0f, 449.0f, 464.0f, 465.0f, 480.0f, 1e30f, std::numeric_limits<float>::max(), HUGE_VALF})
        samples.push_back({x, 0x7E});
    for (const float x : {0x1p-11f, 1e-30f, 0x1p-149f}) samples.push_back({x, 0});
    samples.push_back({NAN, 0x7F});
    for_each_target([&] {
        const auto size = static_cast<int64_t>(samples.size());
        const auto from = row_of(2 * size);
        std::vector<uint8_t> codes(2 * samples.size());
        for (size_t i = 0; i < samples.size(); ++i) {
            from[2 * i] = samples[i].first;
            from[2 * i + 1] = -samples[i].first;
        }
        HWY_DYNAMIC_DISPATCH(Store)(DType::e4m3, from.get(), 2 * size, codes.data());
        for (size_t i = 0; i < samples.size(); ++i) {
            const bool nan = std::isnan(samples[i].first);
            EXPECT_EQ(codes[2 * i] & (nan ? 0x7F : 0xFF), samples[i].second) << samples[i].first;
            EXPECT_EQ(codes[2 * i + 1] & 0x7F, samples[i].second) << -samples[i].first;
            EXPECT_TRUE(nan || codes[2 * i + 1] >= 0x80) << -samples[i].first;
        }
    });
}

// Each code times the factor in fp32, rounded once, whatever the factor and wherever in a vector.
TEST(CpuConvert, DequantisedRowsAreRoundedProducts) {
    for_each_target([] {
        std::vector<uint8_t> codes = all_codes();
        for (int i = 0; i < 37; ++i) codes.push_back(static_cast<uint8_t>(i * 7));
        const auto size = static_cast<int64_t>(codes.size());
        const auto to = row_of(size), products = row_of(size);
        for (const float factor : {1.0f, 0.013f, 1.7e-4f, 3e-7f, -0.7f, 250.0f, 1e37f, 0.0f, HUGE_VALF, NAN}) {
            for (int64_t i = 0; i < size; ++i)
                products[static_cast<size_t>(i)] = e4m3_value(codes[static_cast<size_t>(i)]) * factor;
            for (const Format& format : kHalfFormats) {
                for (const auto& [part, is_own] :
                     {std::pair{size, false}, {int64_t{5}, false}, {int64_t{63}, false}, {size, true}}) {
                    HWY_DYNAMIC_DISPATCH(Dequantise)(format.dtype, factor, is_own, codes.data(), part, to.get());
                    const auto* const halves = reinterpret_cast<const uint16_t*>(to.get());
                    for (size_t i = 0; i < static_cast<size_t>(part); ++i)
                        ASSERT_TRUE(same(format.value(halves[i]), format.nearest(products[i])))
                            << name_of(format.dtype) << " code " << int{codes[i]} << " times " << factor;
                }
            }
            for (const bool is_own : {false, true}) {
                HWY_DYNAMIC_DISPATCH(Dequantise)(DType::f32, factor, is_own, codes.data(), size, to.get());
                for (size_t i = 0; i < codes.size(); ++i) EXPECT_TRUE(same(to[i], products[i])) << i << " " << factor;
            }
        }
    });
}

// Exact in every type.
float small(int64_t i) { return static_cast<float>(i % 16 + 1); }

TEST(CpuConvert, RowsOfAnyLengthTouchNothingElse) {
    for_each_target([] {
        const int64_t n = HWY_DYNAMIC_DISPATCH(VectorLanes)();
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::e4m3}) {
            const int64_t element = bytes_of(dtype);
            for (int64_t size = 0; size <= 3 * n + 1; ++size) {
                const auto from = row_of(size), back = row_of(size);
                for (int64_t i = 0; i < size + n; ++i) from[static_cast<size_t>(i)] = small(i);
                // Exactly as long as the row, so that the address sanitizer sees a read or write beyond it.
                std::vector<unsigned char> stored(static_cast<size_t>(size * element));
                HWY_DYNAMIC_DISPATCH(Store)(dtype, from.get(), size, stored.data());
                HWY_DYNAMIC_DISPATCH(Load)(dtype, stored.data(), size, back.get());
                for (int64_t i = 0; i < (size + n - 1) / n * n; ++i) {
                    EXPECT_EQ(back[static_cast<size_t>(i)], i < size ? small(i) : 0.0f) << size << " " << i;
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
