// Appending to caches in e4m3 (contract 1.12, 1.14), on both backends.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/append_fixture.hpp"

namespace foveal_testing {
namespace {

class AppendE4m3 : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (GetParam() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
};
INSTANTIATE_TEST_SUITE_P(Cpu, AppendE4m3, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, AppendE4m3, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(AppendE4m3, EveryWayToAppend) {
    for (uint32_t seed = 1; seed <= 300; ++seed) {
        AppendCase c = draw_append_case(seed);
        c.cache_dtype = FOVEAL_E4M3;
        c.scales = static_cast<int>(seed % 5);
        AppendData data(GetParam(), c);
        foveal::append(data.options());
        ASSERT_EQ(data.differences(), "") << c.text();
    }
}

// One row of k of one head, and its cache.
std::vector<float> appended(foveal_backend backend, foveal_dtype dtype, const std::vector<float>& row,
                            std::vector<float> scale) {
    const auto d = static_cast<int64_t>(row.size());
    StridedTensor k(backend, dtype, {1, 1, d}), cache(backend, FOVEAL_E4M3, {1, 1, 1, d}),
        slots(backend, FOVEAL_I64, {1}), scales(backend, FOVEAL_F32, {1});
    k.set(row), slots.set({0}), scales.set(scale);
    foveal::append({.k = k.view(), .k_cache = cache.view(), .slot_mapping = slots.view(), .k_scale = scales.view()});
    return cache.values();
}

TEST_P(AppendE4m3, NoFiniteNumberBecomesNaN) {
    const float large = std::numeric_limits<float>::max();
    const std::vector<float> values =
        appended(GetParam(), FOVEAL_F32,
                 {449, 464, 465, -500, 1e30F, -large, HUGE_VALF, -HUGE_VALF, NAN, 447, 0, -0.0F, 1e-30F}, {1});
    const std::vector<float> expected = {448, 448, 448, -448, 448, -448, 448, -448, NAN, 448, 0, -0.0F, 0};
    for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_TRUE(values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]))) << i;
        EXPECT_EQ(std::signbit(values[i]), std::signbit(expected[i])) << i;
    }
    // The quotient overflows f32, and so does its type's largest number.
    EXPECT_EQ(appended(GetParam(), FOVEAL_F32, {large, -large, 0}, {1e-30F}), (std::vector<float>{448, -448, 0}));
    EXPECT_EQ(appended(GetParam(), FOVEAL_F16, {65504, -65504}, {1}), (std::vector<float>{448, -448}));
    EXPECT_EQ(appended(GetParam(), FOVEAL_BF16, {896, 897, 2}, {2}), (std::vector<float>{448, 448, 1}));
}

TEST_P(AppendE4m3, RoundsOnceToNearestEven) {
    // 1 + 1/16 lies between 1 and 1 + 1/8; 1 + 3/16 between 1 + 1/8 and 1 + 1/4; 2^-10 between 0 and 2^-9.
    EXPECT_EQ(appended(GetParam(), FOVEAL_F32, {1.0625F, 1.1875F, 0x1p-10F, 3 * 0x1p-10F}, {1}),
              (std::vector<float>{1, 1.25F, 0, 0x1p-8F}));
    EXPECT_EQ(appended(GetParam(), FOVEAL_F32, {1.0625F, 1.1875F}, {4}), (std::vector<float>{0.25F, 0.3125F}));
}

// Pages of all codes, copied and gathered.
TEST(CpuAppendE4m3, PagesAreCopiedAndGatheredBitForBit) {
    constexpr int64_t kPages = 4, kPageSize = 4, kHeads = 2, kDim = 8;
    std::vector<uint8_t> cache(kPages * kPageSize * kHeads * kDim), rows(5 * kHeads * kDim);
    for (size_t i = 0; i < cache.size(); ++i) cache[i] = static_cast<uint8_t>(i);
    std::vector<uint8_t> expected = cache;
    const int32_t pairs[] = {0, 3, 2, 1}, ends[] = {0, 5}, table[] = {3, 1};
    constexpr auto kE4m3 = foveal::DType::e4m3, kI32 = foveal::DType::i32;
    const foveal::Tensor k_cache = foveal::Tensor::packed(cache.data(), kE4m3, {kPages, kPageSize, kHeads, kDim});
    foveal::copy_pages({.k_cache = k_cache, .pairs = foveal::Tensor::packed(pairs, kI32, {2, 2})});
    const size_t page = kPageSize * kHeads * kDim, row = kHeads * kDim;
    for (size_t i = 0; i < page; ++i) expected[3 * page + i] = expected[i], expected[page + i] = expected[2 * page + i];
    EXPECT_EQ(cache, expected);
    foveal::gather({.k_cache = k_cache,
                    .k = foveal::Tensor::packed(rows.data(), kE4m3, {5, kHeads, kDim}),
                    .cu_seqlens_k = foveal::Tensor::packed(ends, kI32, {2}),
                    .block_table = foveal::Tensor::packed(table, kI32, {1, 2})});
    std::vector<uint8_t> gathered(expected.begin() + 3 * page, expected.end());
    gathered.insert(gathered.end(), expected.begin() + page, expected.begin() + page + row);
    EXPECT_EQ(rows, gathered);
}

// Enough rows for several threads, each of which finds a largest one.
TEST_P(AppendE4m3, ScalesThatAreWorkedOutDoNotDependOnThreads) {
    AppendCase c{.cache_dtype = FOVEAL_E4M3};
    c.target = AppendCase::Target::kDenseCache;
    c.batch = 3, c.rows = 700, c.page_size = 2200, c.pages = 4, c.scales = 3;
    AppendData data(GetParam(), c);
    foveal::append(data.options());
    EXPECT_EQ(data.differences(), "");
}

// k of one head with scales that are worked out: rows [rows.size()], behind each other in one page.
std::vector<float> scales_of(foveal_backend backend, const std::vector<std::vector<float>>& rows, bool of_rows,
                             std::vector<float>& values) {
    const auto n = static_cast<int64_t>(rows.size()), d = static_cast<int64_t>(rows[0].size());
    StridedTensor k(backend, FOVEAL_F32, {1, n, 1, d}), cache(backend, FOVEAL_E4M3, {1, n, 1, d}),
        lengths(backend, FOVEAL_I32, {1}), scales(backend, FOVEAL_F32, of_rows ? Shape{1, n, 1} : Shape{1});
    std::vector<float> all;
    for (const std::vector<float>& row : rows) all.insert(all.end(), row.begin(), row.end());
    k.set(all), lengths.set({0});
    foveal::append(
        {.k = k.view(), .k_cache = cache.view(), .cache_lengths = lengths.view(), .k_scale_out = scales.view()});
    values = cache.values();
    return scales.values();
}

TEST_P(AppendE4m3, NaNAndInfinitiesDoNotCountInScales) {
    const std::vector<std::vector<float>> rows = {{NAN, 2, -896}, {HUGE_VALF, 0, -0.0F}, {1, 3, 448}};
    std::vector<float> values;
    EXPECT_EQ(scales_of(GetParam(), rows, false, values), (std::vector<float>{2}));
    EXPECT_TRUE(std::isnan(values[0]));
    values[0] = 0;
    EXPECT_EQ(values, (std::vector<float>{0, 1, -448, 448, 0, -0.0F, 0.5F, 1.5F, 224}));
    EXPECT_EQ(scales_of(GetParam(), rows, true, values), (std::vector<float>{2, 1, 1}));
    EXPECT_EQ(values[3], 448);
    // 448 parts of the smallest numbers are none.
    EXPECT_EQ(scales_of(GetParam(), {{0x1p-149F, 0x1p-148F}}, true, values), (std::vector<float>{1}));
    EXPECT_EQ(values, (std::vector<float>{0, 0}));
    const float large = std::numeric_limits<float>::max();
    EXPECT_EQ(scales_of(GetParam(), {{large, -large / 2}}, true, values), (std::vector<float>{large / 448}));
    EXPECT_EQ(values, (std::vector<float>{448, -224}));
}

TEST_P(AppendE4m3, WithoutRowsAHeadsScaleIsOne) {
    for (const int64_t rows : {0, 2}) {  // those of two go nowhere
        StridedTensor k(GetParam(), FOVEAL_F32, {rows, 2, 8}), cache(GetParam(), FOVEAL_E4M3, {1, 4, 2, 8}),
            slots(GetParam(), FOVEAL_I64, {rows}), scales(GetParam(), FOVEAL_F32, {2});
        k.set(std::vector<float>(static_cast<size_t>(rows * 16), 3));
        slots.set(std::vector<float>(static_cast<size_t>(rows), -1));
        foveal::append(
            {.k = k.view(), .k_cache = cache.view(), .slot_mapping = slots.view(), .k_scale_out = scales.view()});
        EXPECT_EQ(scales.values(), (std::vector<float>{1, 1})) << rows;
    }
}

TEST(CpuAppendE4m3, Refuses) {
    const AppendCase c{.cache_dtype = FOVEAL_E4M3};
    static float scales[2] = {1, 0};
    const auto two = [] { return foveal::Tensor::packed(scales, foveal::DType::f32, {2}); };
    for (const auto& [bad, text] : {std::pair{0.0F, "is 0"}, {-1.0F, "is -1"}, {HUGE_VALF, "is inf"}, {NAN, "nan"}}) {
        scales[1] = bad;
        expect_refused(c, {"k_scale[1]", text, "positive and finite"}, [&](auto& o) { o.k_scale = two(); });
        expect_refused(c, {"v_scale[1]", text, "positive and finite"}, [&](auto& o) { o.v_scale = two(); });
    }
    // Scales of rows are worked out, not given.
    expect_refused(c, {"k_scale.rank", "3", "[1] or [h_k]"}, [&](auto& o) {
        o.k_scale = foveal::Tensor::strided(scales, foveal::DType::f32, {23, 16, 2}, {0, 0, 1});
    });
    static float of_rows[23 * 16 * 2];
    const auto rows = [](int64_t pages) { return foveal::Tensor::packed(of_rows, foveal::DType::f32, {pages, 16, 2}); };
    expect_refused(c, {"k_scale_out.shape[0]", "22", "k_cache.shape[0]", "23"},
                   [&](auto& o) { o.k_scale_out = rows(22); });
    expect_refused(c, {"v_scale_out.rank", "2", "[pages, page_size, h_k]"}, [&](auto& o) {
        o.v_scale_out = foveal::Tensor::packed(of_rows, foveal::DType::f32, {23, 2});
    });
    expect_refused(c, {"k_scale_out.shape[0]", "1", "k_cache.shape[2]", "2"},
                   [&](auto& o) { o.k_scale_out = foveal::Tensor::packed(of_rows, foveal::DType::f32, {1}); });
    expect_refused(c, {"k_scale_out.dtype", "bf16", "f32"},
                   [&](auto& o) { o.k_scale_out = rows(23), o.k_scale_out.dtype = FOVEAL_BF16; });
    expect_refused(c, {"k_scale and k_scale_out are present"},
                   [&](auto& o) { scales[1] = 1, o.k_scale = two(), o.k_scale_out = rows(23); });
    expect_refused(c, {"k_scale_out is present, but k is absent"},
                   [&](auto& o) { o.k_scale_out = rows(23), o.k = o.k_cache = foveal::Tensor(); });
    expect_refused(c, {"k_scale_out", "v_scale_out", "overlap"},
                   [&](auto& o) { o.k_scale_out = o.v_scale_out = rows(23); });
    expect_refused(c, {"k_scale_out.stride"}, [&](auto& o) {
        o.k_scale_out = foveal::Tensor::strided(of_rows, foveal::DType::f32, {23, 16, 2}, {0, 0, 1});
    });
    AppendCase bf16;
    expect_refused(bf16, {"k_scale_out is present, but k_cache.dtype is bf16", "e4m3"},
                   [&](auto& o) { o.k_scale_out = rows(23); });
    expect_refused(c, {"k.dtype", "e4m3", "f32, bf16 and f16"}, [](auto& o) { o.k.dtype = FOVEAL_E4M3; });
    expect_refused(c, {"v_cache.dtype", "k_cache's dtype"}, [](auto& o) { o.v_cache.dtype = FOVEAL_BF16; });
    expect_refused(c, {"k_cache.dtype", "i32", "e4m3"}, [](auto& o) { o.k_cache.dtype = FOVEAL_I32; });
}

}  // namespace
}  // namespace foveal_testing
