// What foveal_append refuses, by name, having written nothing (contract 1.9, 1.12).
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/contract/append_fixture.hpp"

namespace foveal_testing {
namespace {

using Options = foveal::AppendOptions;

constexpr AppendCase kSlots{.target = AppendCase::Target::kSlots};
constexpr AppendCase kPages{.target = AppendCase::Target::kPages, .positions = 0};
constexpr AppendCase kDense{.target = AppendCase::Target::kDenseCache, .ragged = false, .page_size = 100, .pages = 4};

TEST(CpuAppendRefuses, Forms) {
    expect_refused(kSlots, {"k.rank", "2"}, [](Options& o) { o.k.rank = 2; });
    expect_refused(kSlots, {"v.rank", "4", "3"}, [](Options& o) { o.v.rank = 4; });
    expect_refused(kSlots, {"k.dtype", "i32"}, [](Options& o) { o.k.dtype = FOVEAL_I32; });
    expect_refused(kSlots, {"q.dtype", "f16", "bf16"}, [](Options& o) { o.q.dtype = FOVEAL_F16; });
    expect_refused(kSlots, {"q_out.dtype", "f32"}, [](Options& o) { o.q_out.dtype = FOVEAL_F32; });
    expect_refused(kSlots, {"v.shape[0]", "14", "15"}, [](Options& o) { o.v.shape[0] = 14; });
    expect_refused(kSlots, {"k_cache.shape[2]", "3", "2"}, [](Options& o) { o.k_cache.shape[2] = 3; });
    expect_refused(kSlots, {"v_cache.shape[3]", "32", "64"}, [](Options& o) { o.v_cache.shape[3] = 32; });
    expect_refused(kSlots, {"v_cache.shape[1]", "8", "16"}, [](Options& o) { o.v_cache.shape[1] = 8; });
    expect_refused(kSlots, {"v_cache.dtype", "f16"}, [](Options& o) { o.v_cache.dtype = FOVEAL_F16; });
    expect_refused(kSlots, {"k_cache.shape[1]", "0"}, [](Options& o) { o.k_cache.shape[1] = o.v_cache.shape[1] = 0; });
    expect_refused(kSlots, {"k_cache is absent", "k is present"}, [](Options& o) { o.k_cache.rank = 0; });
    expect_refused(kSlots, {"k, v and q are absent"},
                   [](Options& o) { o.k = o.v = o.q = o.k_cache = o.v_cache = o.q_out = {}; });
    expect_refused(kSlots, {"k.stride[2]", "2"}, [](Options& o) { o.k.stride[2] = 2; });
    expect_refused(kSlots, {"rotary_layout", "2"},
                   [](Options& o) { o.rotary_layout = static_cast<foveal::RotaryLayout>(2); });
}

TEST(CpuAppendRefuses, Places) {
    expect_refused(kSlots, {"slot_mapping and cache_lengths are absent"}, [](Options& o) { o.slot_mapping = {}; });
    expect_refused(kSlots, {"slot_mapping.dtype", "i32", "i64"}, [](Options& o) { o.slot_mapping.dtype = FOVEAL_I32; });
    expect_refused(kSlots, {"slot_mapping.shape[0]", "14", "15"}, [](Options& o) { o.slot_mapping.shape[0] = 14; });
    expect_refused(kSlots, {"block_table is present"}, [](Options& o) { o.block_table = o.cos; });
    expect_refused(kPages, {"slot_mapping and cache_lengths are present"},
                   [](Options& o) { o.slot_mapping = o.cache_lengths; });
    expect_refused(kPages, {"cu_seqlens", "absent"}, [](Options& o) { o.cu_seqlens = {}; });
    expect_refused(kPages, {"cu_seqlens.shape[0]", "3", "4"}, [](Options& o) { o.cu_seqlens.shape[0] = 3; });
    expect_refused(kPages, {"block_table.dtype", "f32"}, [](Options& o) { o.block_table.dtype = FOVEAL_F32; });
    expect_refused(kPages, {"block_table.shape[0]", "2", "3"}, [](Options& o) { o.block_table.shape[0] = 2; });
    expect_refused(kDense, {"k_cache.shape[0]", "2", "3"},
                   [](Options& o) { o.k_cache.shape[0] = o.v_cache.shape[0] = 2; });
}

TEST(CpuAppendRefuses, RotaryEmbeddings) {
    expect_refused(kSlots, {"sin is absent"}, [](Options& o) { o.sin = {}; });
    expect_refused(kSlots, {"cos and sin are absent", "q is present"},
                   [](Options& o) { o.cos = o.sin = o.positions = {}; });
    expect_refused(kSlots, {"positions is absent"}, [](Options& o) { o.positions = {}; });
    expect_refused(kSlots, {"positions is present", "absent"}, [](Options& o) { o.cos = o.sin = o.q = o.q_out = {}; });
    expect_refused(kSlots, {"sin.shape[1]", "31", "32"}, [](Options& o) { o.sin.shape[1] = 31; });
    expect_refused(kSlots, {"cos.shape[1]", "33", "64"}, [](Options& o) { o.cos.shape[1] = o.sin.shape[1] = 33; });
    expect_refused(kSlots, {"cos.dtype", "f16"}, [](Options& o) { o.cos.dtype = o.sin.dtype = FOVEAL_F16; });
    expect_refused(kSlots, {"positions.dtype", "f32"}, [](Options& o) { o.positions.dtype = FOVEAL_F32; });
}

// An element of one byte: the elements themselves end at 2^63, where nothing counts any more.
TEST(CpuAppendRefuses, CachesThatEndBeyond64Bits) {
    expect_refused({.cache_dtype = FOVEAL_E4M3}, {"k_cache", "beyond 64 bits"}, [](Options& o) {
        int64_t inner = 0;
        for (const int i : {0, 1, 3}) inner += o.k_cache.stride[i] * (o.k_cache.shape[i] - 1);
        ASSERT_EQ(o.k_cache.shape[2], 2);
        o.k_cache.stride[2] = INT64_MAX - inner;
    });
}

TEST(CpuAppendRefuses, Scales) {
    constexpr AppendCase scaled{.scales = 2};
    expect_refused(scaled, {"k_scale.shape[0]", "3", "2"}, [](Options& o) { o.k_scale.shape[0] = 3; });
    expect_refused(scaled, {"v_scale.dtype", "bf16"}, [](Options& o) { o.v_scale.dtype = FOVEAL_BF16; });
    expect_refused(scaled, {"v_scale is present", "v is absent"}, [](Options& o) { o.v = o.v_cache = {}; });
}

TEST(CpuAppendRefuses, Overlaps) {
    expect_refused(kSlots, {"k_cache", "v_cache"}, [](Options& o) { o.k_cache.data = o.v_cache.data; });
    expect_refused(kSlots, {"q_out", "k"}, [](Options& o) { o.k.data = o.q_out.data; });
    expect_refused(kSlots, {"q_out", "q", "in part"},
                   [](Options& o) { o.q.data = static_cast<char*>(o.q_out.data) + 16; });
    expect_refused(kSlots, {"k_cache", "slot_mapping"}, [](Options& o) { o.slot_mapping.data = o.k_cache.data; });
}

// Values that a kernel trusts.
TEST(CpuAppendRefuses, EntriesOutOfRange) {
    const auto int64_at = [](foveal_tensor& t, int i) -> int64_t& { return static_cast<int64_t*>(t.data)[i]; };
    const auto int32_at = [](foveal_tensor& t, int i) -> int32_t& { return static_cast<int32_t*>(t.data)[i]; };
    expect_refused(kSlots, {"slot_mapping[3]", "368", "367"},
                   [&](Options& o) { int64_at(o.slot_mapping, 3) = 23 * 16; });
    expect_refused(kSlots, {"positions[2]", "400", "399"}, [&](Options& o) { int32_at(o.positions, 2) = 400; });
    expect_refused(kSlots, {"positions[0]", "-1"}, [&](Options& o) { int32_at(o.positions, 0) = -1; });
    expect_refused(kPages, {"cache_lengths[1]", "-1"}, [&](Options& o) { int32_at(o.cache_lengths, 1) = -1; });
    expect_refused(kPages, {"cache_lengths[0]", "1600", "room"}, [&](Options& o) {
        int32_at(o.cache_lengths, 0) = 1600, int32_at(o.cu_seqlens, 1) = std::max(1, int32_at(o.cu_seqlens, 1));
    });
    expect_refused(kPages, {"cu_seqlens[0]", "1"}, [&](Options& o) { int32_at(o.cu_seqlens, 0) = 1; });
    expect_refused(kPages, {"cu_seqlens[3]", "14", "15"}, [&](Options& o) {
        for (int i = 1; i < 4; ++i) int32_at(o.cu_seqlens, i) = std::min(14, int32_at(o.cu_seqlens, i));
    });
    expect_refused(kPages, {"block_table[", "1000"}, [&](Options& o) {
        for (int i = 0; i < 21; ++i) int32_at(o.block_table, i) = 1000;
    });
    expect_refused(kDense, {"cache_lengths[2]", "room"}, [&](Options& o) { int32_at(o.cache_lengths, 2) = 99; });
}

}  // namespace
}  // namespace foveal_testing
