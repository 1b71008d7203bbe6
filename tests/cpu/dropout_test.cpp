// cpu/dropout.hpp on every SIMD target that this CPU has: the same bits as src/problem/dropout.hpp. Included once for
// each target.
#include "cpu/simd_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/cpu/dropout_test.cpp"
#include <hwy/foreach_target.h>

#include "cpu/dropout.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

int64_t VectorLanes() { return lanes(); }

// c0, c1, c2: [lanes()]; words: [4, lanes()]
void Philox(const uint32_t* c0, const uint32_t* c1, const uint32_t* c2, PhiloxKey key, uint32_t* words) {
    const U32 d;
    const PhiloxVectors bits = philox_vectors(hn::LoadU(d, c0), hn::LoadU(d, c1), hn::LoadU(d, c2), key);
    for (int i = 0; i < 4; ++i) hn::StoreU(bits.word[i], d, words + i * lanes());
}

void DropWeights(float* p, int32_t first_key, int32_t keys, const uint32_t* row, const uint32_t* head, PhiloxKey key,
                 uint32_t threshold) {
    drop_weights<2>(p, first_key, keys, {key, threshold, row, head});
}

void DropWeightPairs(uint32_t* p, int32_t first_key, int32_t keys, const uint32_t* row, const uint32_t* head,
                     PhiloxKey key, uint32_t threshold) {
    drop_weight_pairs<2>(p, first_key, keys, {key, threshold, row, head});
}

void DropRow(float* p, int32_t first_key, int32_t begin, int32_t end, PhiloxKey key, uint32_t threshold, uint32_t head,
             uint32_t row) {
    drop_row(p, first_key, {begin, end}, key, threshold, head, row);
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/cpu/each_target.hpp"

namespace foveal::cpu {

HWY_EXPORT(VectorLanes);
HWY_EXPORT(Philox);
HWY_EXPORT(DropWeights);
HWY_EXPORT(DropWeightPairs);
HWY_EXPORT(DropRow);

namespace {

constexpr PhiloxKey kKey{{0x12345678, 0x9ABCDEF0}};
constexpr int kVectors = 2;

// Aligned, as whoever drops weights has it.
template <class T>
struct Aligned {
    explicit Aligned(size_t size) : memory(size + 16) {}
    T* data() {
        auto address = reinterpret_cast<uintptr_t>(memory.data());
        return reinterpret_cast<T*>((address + 63) / 64 * 64);
    }
    std::vector<T> memory;
};

TEST(CpuDropout, WordsAreThoseOfTheScalarGenerator) {
    for_each_target([] {
        const auto n = static_cast<size_t>(HWY_DYNAMIC_DISPATCH(VectorLanes)());
        std::mt19937 random(7);
        std::vector<uint32_t> c0(n), c1(n), c2(n), words(4 * n);
        for (int repeat = 0; repeat < 1000; ++repeat) {
            for (size_t i = 0; i < n; ++i) {
                const bool extreme = random() % 4 == 0;
                c0[i] = extreme ? 0xFFFFFFFF : static_cast<uint32_t>(random());
                c1[i] = static_cast<uint32_t>(random());
                c2[i] = extreme ? 0 : static_cast<uint32_t>(random());
            }
            const PhiloxKey key{{static_cast<uint32_t>(random()), static_cast<uint32_t>(random())}};
            HWY_DYNAMIC_DISPATCH(Philox)(c0.data(), c1.data(), c2.data(), key, words.data());
            for (size_t i = 0; i < n; ++i) {
                const PhiloxBlock expected = philox({{c0[i], c1[i], c2[i], 0}}, key);
                for (size_t w = 0; w < 4; ++w) ASSERT_EQ(words[w * n + i], expected.word[w]);
            }
        }
    });
}

struct Run {
    int32_t first_key, keys;
};
constexpr Run kRuns[] = {{0, 64}, {64, 8}, {4, 60}, {8, 4}, {36, 28}, {128, 32}, {1028, 12}};

TEST(CpuDropout, TilesDropWhatTheScalarRuleDrops) {
    for_each_target([] {
        const auto width = static_cast<size_t>(kVectors * HWY_DYNAMIC_DISPATCH(VectorLanes)());
        Aligned<uint32_t> row(width), head(width);
        for (size_t i = 0; i < width; ++i) {
            row.data()[i] = static_cast<uint32_t>(1000 + i / 3);
            head.data()[i] = static_cast<uint32_t>(5 + i % 3);
        }
        for (const uint32_t threshold : {1u, 6554u, 32768u, 65535u}) {
            for (const auto& [first, keys] : kRuns) {
                Aligned<float> floats(static_cast<size_t>(keys) * width);
                Aligned<uint32_t> pairs(static_cast<size_t>(keys) / 2 * width);
                std::fill_n(floats.data(), static_cast<size_t>(keys) * width, 1.0f);
                std::fill_n(pairs.data(), static_cast<size_t>(keys) / 2 * width, 0x22221111u);
                HWY_DYNAMIC_DISPATCH(DropWeights)
                (floats.data(), first, keys, row.data(), head.data(), kKey, threshold);
                HWY_DYNAMIC_DISPATCH(DropWeightPairs)
                (pairs.data(), first, keys, row.data(), head.data(), kKey, threshold);
                for (size_t j = 0; j < static_cast<size_t>(keys); ++j) {
                    for (size_t i = 0; i < width; ++i) {
                        const bool kept = dropout_keeps(kKey, threshold, head.data()[i], row.data()[i],
                                                        static_cast<uint32_t>(first) + static_cast<uint32_t>(j));
                        ASSERT_EQ(floats.data()[j * width + i], kept ? 1.0f : 0.0f) << first << " " << j << " " << i;
                        const uint32_t word = pairs.data()[j / 2 * width + i];
                        const uint32_t half = j % 2 == 0 ? word & 0xFFFF : word >> 16;
                        ASSERT_EQ(half, !kept ? 0u : j % 2 == 0 ? 0x1111u : 0x2222u) << first << " " << j << " " << i;
                    }
                }
            }
        }
    });
}

TEST(CpuDropout, RowsDropWhatTheScalarRuleDrops) {
    for_each_target([] {
        for (const int32_t first : {0, 1, 31, 32, 77}) {
            std::vector<float> p(64, 1.0f);
            const int32_t begin = 3, end = 61;
            HWY_DYNAMIC_DISPATCH(DropRow)(p.data(), first, begin, end, kKey, 20000, 9, 1234);
            for (int32_t j = 0; j < 64; ++j) {
                const bool kept =
                    j < begin || j >= end || dropout_keeps(kKey, 20000, 9, 1234, static_cast<uint32_t>(first + j));
                ASSERT_EQ(p[static_cast<size_t>(j)], kept ? 1.0f : 0.0f) << first << " " << j;
            }
        }
    });
}

}  // namespace
}  // namespace foveal::cpu
#endif
