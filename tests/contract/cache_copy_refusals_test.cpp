// What foveal_copy_pages and foveal_gather refuse, by name, before a byte is written.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_testing {
namespace {

constexpr int64_t kPages = 6, kPageSize = 4, kHeads = 2, kDim = 8;

template <class T>
foveal_tensor view(std::vector<T>& data, foveal_dtype dtype, std::initializer_list<int64_t> shape) {
    foveal_tensor t{};
    t.data = data.data();
    t.dtype = dtype;
    for (const int64_t n : shape) t.shape[t.rank++] = n;
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; stride *= t.shape[i--]) t.stride[i] = stride;
    return t;
}

// Two caches, three pairs; three sequences of 5, 0 and 4 keys.
struct Call {
    Call() {
        foveal_copy_pages_args_init(&copy);
        foveal_gather_args_init(&gather);
        copy.backend = gather.backend = FOVEAL_BACKEND_CPU;
        copy.k_cache = gather.k_cache = view(k_cache, FOVEAL_F32, {kPages, kPageSize, kHeads, kDim});
        copy.v_cache = gather.v_cache = view(v_cache, FOVEAL_F32, {kPages, kPageSize, kHeads, kDim});
        copy.pairs = view(pairs, FOVEAL_I32, {3, 2});
        gather.k = view(k, FOVEAL_F32, {9, kHeads, kDim});
        gather.v = view(v, FOVEAL_F32, {9, kHeads, kDim});
        gather.cu_seqlens_k = view(ends, FOVEAL_I32, {4});
        gather.block_table = view(table, FOVEAL_I32, {3, 2});
    }
    void use_list() {
        gather.block_table.rank = 0;
        gather.page_indptr = view(indptr, FOVEAL_I32, {4});
        gather.page_indices = view(indices, FOVEAL_I32, {3});
    }
    bool untouched() const {
        const Call fresh;
        return k_cache == fresh.k_cache && v_cache == fresh.v_cache && k == fresh.k && v == fresh.v;
    }

    std::vector<float> k_cache = std::vector<float>(kPages * kPageSize * kHeads * kDim, 1), v_cache = k_cache,
                       k = std::vector<float>(9 * kHeads * kDim, 2), v = k;
    std::vector<int32_t> pairs{0, 3, 1, 4, -1, 5}, ends{0, 5, 5, 9}, used{5, 0, 4}, table{2, 0, 9, 9, 5, -1},
        indptr{0, 2, 2, 3}, indices{2, 0, 5};
    foveal_copy_pages_args copy;
    foveal_gather_args gather;
};

void expect_named(foveal_status status, const Call& call, std::initializer_list<const char*> words) {
    EXPECT_EQ(status, FOVEAL_INVALID_ARGUMENT);
    for (const char* word : words)
        EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
            << word << ": " << foveal_last_error();
    EXPECT_TRUE(call.untouched()) << "a refused call wrote";
}

void expect_copy_refused(std::initializer_list<const char*> words, const std::function<void(Call&)>& spoil) {
    Call call;
    spoil(call);
    expect_named(foveal_copy_pages(&call.copy, nullptr), call, words);
}

void expect_gather_refused(std::initializer_list<const char*> words, const std::function<void(Call&)>& spoil) {
    Call call;
    spoil(call);
    expect_named(foveal_gather(&call.gather, nullptr), call, words);
}

TEST(CacheCopyRefuses, NothingOfTheCallsBelow) {
    Call call;
    EXPECT_EQ(foveal_copy_pages(&call.copy, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_gather(&call.gather, nullptr), FOVEAL_OK) << foveal_last_error();
    call.use_list();
    EXPECT_EQ(foveal_gather(&call.gather, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(call.k, std::vector<float>(call.k.size(), 1));
}

TEST(CopyPagesRefuses, Forms) {
    expect_copy_refused({"k_cache and v_cache are absent"}, [](Call& c) { c.copy.k_cache = c.copy.v_cache = {}; });
    expect_copy_refused({"k_cache.rank", "3"}, [](Call& c) { c.copy.k_cache.rank = 3; });
    expect_copy_refused({"k_cache.dtype", "i32"}, [](Call& c) { c.copy.k_cache.dtype = FOVEAL_I32; });
    expect_copy_refused({"v_cache.dtype", "bf16", "f32"}, [](Call& c) { c.copy.v_cache.dtype = FOVEAL_BF16; });
    expect_copy_refused({"v_cache.shape[0]", "5", "6"}, [](Call& c) { c.copy.v_cache.shape[0] = 5; });
    expect_copy_refused({"v_cache.shape[1]", "3", "4"}, [](Call& c) { c.copy.v_cache.shape[1] = 3; });
    expect_copy_refused({"v_cache.shape[2]", "1", "2"}, [](Call& c) { c.copy.v_cache.shape[2] = 1; });
    expect_copy_refused({"k_cache.shape[1] is 0"},
                        [](Call& c) { c.copy.k_cache.shape[1] = c.copy.v_cache.shape[1] = 0; });
    expect_copy_refused({"k_cache.stride[0]", "overlap itself"}, [](Call& c) { c.copy.k_cache.stride[0] = 0; });
    expect_copy_refused({"pairs is absent"}, [](Call& c) { c.copy.pairs = {}; });
    expect_copy_refused({"pairs.rank", "1"}, [](Call& c) { c.copy.pairs.rank = 1; });
    expect_copy_refused({"pairs.dtype", "u32", "i64"}, [](Call& c) { c.copy.pairs.dtype = FOVEAL_U32; });
    expect_copy_refused({"pairs.shape[1]", "3", "2"}, [](Call& c) {
        c.copy.pairs = view(c.pairs, FOVEAL_I32, {2, 3});
    });
    expect_copy_refused({"backend is 7"}, [](Call& c) { c.copy.backend = 7; });
}

TEST(CopyPagesRefuses, EntriesOutOfRangeAndPagesThatAreWrittenTwice) {
    expect_copy_refused({"pairs[1, 0]", "6"}, [](Call& c) { c.pairs[2] = 6; });
    expect_copy_refused({"pairs[2, 1]", "100"}, [](Call& c) { c.pairs[5] = 100; });
    expect_copy_refused({"pairs[0, 1]", "4", "another pair writes"}, [](Call& c) { c.pairs[1] = 4; });
    expect_copy_refused({"pairs[1, 0]", "3", "another pair writes"}, [](Call& c) { c.pairs[2] = 3; });
}

TEST(CopyPagesRefuses, Overlaps) {
    expect_copy_refused({"k_cache", "v_cache", "overlap"}, [](Call& c) { c.copy.k_cache.data = c.v_cache.data() + 4; });
    expect_copy_refused({"v_cache", "pairs", "overlap"}, [](Call& c) { c.copy.pairs.data = c.v_cache.data(); });
}

TEST(GatherRefuses, Forms) {
    expect_gather_refused({"k_cache and v_cache are absent"},
                          [](Call& c) { c.gather.k_cache = c.gather.v_cache = c.gather.k = c.gather.v = {}; });
    expect_gather_refused({"k is present", "k_cache is absent"}, [](Call& c) { c.gather.k_cache = {}; });
    expect_gather_refused({"v_cache is present", "v is absent"}, [](Call& c) { c.gather.v = {}; });
    expect_gather_refused({"k.dtype", "bf16", "f32"}, [](Call& c) { c.gather.k.dtype = FOVEAL_BF16; });
    expect_gather_refused({"v.shape[0]", "8", "9"}, [](Call& c) { c.gather.v.shape[0] = 8; });
    expect_gather_refused({"k.shape[2]", "4", "8"}, [](Call& c) { c.gather.k.shape[2] = 4; });
    expect_gather_refused({"cu_seqlens_k is absent"}, [](Call& c) { c.gather.cu_seqlens_k = {}; });
    expect_gather_refused({"cu_seqlens_k.dtype", "f32"}, [](Call& c) { c.gather.cu_seqlens_k.dtype = FOVEAL_F32; });
    expect_gather_refused({"cu_seqlens_k.shape[0] is 1"},
                          [](Call& c) { c.gather.cu_seqlens_k.shape[0] = 1, c.gather.block_table.shape[0] = 0; });
    expect_gather_refused({"seqused_k.shape[0]", "2", "3"},
                          [](Call& c) { c.gather.seqused_k = view(c.used, FOVEAL_I32, {2}); });
    expect_gather_refused({"block_table and page_indices are absent"}, [](Call& c) { c.gather.block_table = {}; });
    expect_gather_refused({"block_table and page_indices are present"}, [](Call& c) {
        const foveal_tensor table = c.gather.block_table;
        c.use_list(), c.gather.block_table = table;
    });
    expect_gather_refused({"page_indptr is absent"}, [](Call& c) { c.use_list(), c.gather.page_indptr = {}; });
    expect_gather_refused({"block_table.shape[0]", "2", "3"}, [](Call& c) { c.gather.block_table.shape[0] = 2; });
    expect_gather_refused({"block_table.dtype", "i64"}, [](Call& c) { c.gather.block_table.dtype = FOVEAL_I64; });
}

TEST(GatherRefuses, EntriesOutOfRange) {
    expect_gather_refused({"cu_seqlens_k[0]", "1"}, [](Call& c) { c.ends[0] = 1; });
    expect_gather_refused({"cu_seqlens_k[2]", "4"}, [](Call& c) { c.ends[2] = 4; });
    expect_gather_refused({"cu_seqlens_k[3]", "8", "9"}, [](Call& c) { c.ends[3] = 8; });
    expect_gather_refused({"seqused_k[0]", "6"},
                          [](Call& c) { c.used[0] = 6, c.gather.seqused_k = view(c.used, FOVEAL_I32, {3}); });
    expect_gather_refused({"block_table[0, 1]", "6"}, [](Call& c) { c.table[1] = 6; });
    expect_gather_refused({"block_table[2, 0]", "-1"}, [](Call& c) { c.table[4] = -1; });
    expect_gather_refused({"sequence 0", "no room"}, [](Call& c) { c.gather.block_table.shape[1] = 1; });
    expect_gather_refused({"page_indptr[2]"}, [](Call& c) { c.use_list(), c.indptr[2] = 1; });
    expect_gather_refused({"sequence 2", "no room"}, [](Call& c) { c.use_list(), c.indptr[2] = 3; });
    expect_gather_refused({"page_indices[2]", "77"}, [](Call& c) { c.use_list(), c.indices[2] = 77; });
}

TEST(GatherRefuses, Overlaps) {
    expect_gather_refused({"k overlaps v"}, [](Call& c) { c.gather.k.data = c.v.data(); });
    expect_gather_refused({"k overlaps k_cache"}, [](Call& c) { c.gather.k.data = c.k_cache.data() + 8; });
    expect_gather_refused({"v overlaps k_cache"}, [](Call& c) { c.gather.v.data = c.k_cache.data(); });
    expect_gather_refused({"k overlaps cu_seqlens_k"}, [](Call& c) { c.gather.cu_seqlens_k.data = c.k.data(); });
    expect_gather_refused({"v overlaps block_table"}, [](Call& c) { c.gather.block_table.data = c.v.data() + 3; });
}

}  // namespace
}  // namespace foveal_testing
