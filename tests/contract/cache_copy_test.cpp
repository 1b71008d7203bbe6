// Copies of pages, and gathers: bit for bit what they must write, and not a byte besides, on both backends.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {
namespace {

void skip_without(foveal_backend backend) {
    if (backend == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
}

template <class T>
T pick(std::mt19937& random, std::initializer_list<T> values) {
    return *(values.begin() + random() % values.size());
}

// Strides of [..., rows, heads, d]: packed, heads before rows, or with an element of padding behind each dimension.
Shape drawn_strides(const Shape& shape, uint32_t which) {
    if (which == 0) return packed_strides(shape);
    if (which == 1) return packed_strides(shape, 1);
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::swap(order[shape.size() - 3], order[shape.size() - 2]);
    return strides_in_order(shape, order, 8);
}

// A cache's values, numbered so that no two rows are alike, with NaN in between: what is copied is not looked at.
std::vector<float> numbered(int64_t elements, foveal_dtype dtype) {
    std::vector<float> values(static_cast<size_t>(elements));
    for (size_t i = 0; i < values.size(); ++i) {
        const float value = static_cast<float>(i * 2654435761u % 8191) / 64;
        values[i] = i % 97 == 5 ? std::numeric_limits<float>::infinity() : value;
        if (dtype == FOVEAL_E4M3)
            values[i] = e4m3_to_float(float_to_e4m3(values[i]));
        else if (dtype != FOVEAL_F32)
            values[i] =
                dtype == FOVEAL_BF16 ? bf16_to_float(float_to_bf16(values[i])) : f16_to_float(float_to_f16(values[i]));
    }
    return values;
}

struct CacheCase {
    foveal_dtype dtype;
    int64_t pages, page_size, heads, d, d_v;
    uint32_t layout, out_layout;
    bool has_k, has_v;
};

CacheCase draw_cache(std::mt19937& random) {
    CacheCase c{};
    c.dtype = pick(random, {FOVEAL_F32, FOVEAL_BF16, FOVEAL_F16, FOVEAL_E4M3});
    c.page_size = pick<int64_t>(random, {1, 3, 7, 8, 16, 48, 64, 128});
    c.pages = c.page_size < 8 ? 90 : c.page_size < 48 ? 40 : 14;
    c.heads = pick<int64_t>(random, {1, 2, 3, 8});
    c.d = pick<int64_t>(random, {1, 8, 20, 64, 128});
    c.d_v = random() % 2 == 0 ? c.d : pick<int64_t>(random, {6, 32, 192});
    c.layout = pick(random, {0u, 1u, 2u}), c.out_layout = pick(random, {0u, 1u, 2u});
    c.has_k = random() % 8 != 0;
    c.has_v = !c.has_k || random() % 8 != 0;
    return c;
}

// A cache and the values that it must hold.
struct Cache {
    Cache(foveal_backend backend, const CacheCase& c, int64_t d, int64_t offset)
        : shape{c.pages, c.page_size, c.heads, d},
          tensor(backend, c.dtype, shape, drawn_strides(shape, c.layout), offset),
          values(numbered(elements_of(shape), c.dtype)) {
        tensor.set(values);
    }
    int64_t page_elements() const { return elements_of(shape) / shape[0]; }
    int64_t row_elements() const { return shape[2] * shape[3]; }

    Shape shape;
    StridedTensor tensor;
    std::vector<float> values;
};

// Does the tensor hold these values, and poison around them?
bool holds(StridedTensor& tensor, const std::vector<float>& expected) {
    const std::vector<std::byte> bytes = tensor.bytes();
    tensor.set(expected);
    return tensor.bytes() == bytes;
}

StridedTensor integers(foveal_backend backend, foveal_dtype dtype, const Shape& shape,
                       const std::vector<int64_t>& values) {
    StridedTensor tensor(backend, dtype, shape);
    tensor.set({values.begin(), values.end()});
    return tensor;
}

class CacheCopyDrawn : public testing::TestWithParam<std::tuple<foveal_backend, uint32_t>> {
   protected:
    void SetUp() override { skip_without(std::get<0>(GetParam())); }
    foveal_backend backend() const { return std::get<0>(GetParam()); }
};

// What a library that ignores something would be called with.
template <class Options>
using Change = std::function<void(Options&)>;

// Of drawn caches and pairs; is it right?
bool copies_drawn_pages(foveal_backend backend, uint32_t seed, const Change<foveal::CopyPagesOptions>& change = {}) {
    std::mt19937 random(seed);
    const CacheCase c = draw_cache(random);
    const int64_t offset = random() % 2 == 0 ? 16 : 17;
    std::optional<Cache> k, v;
    if (c.has_k) k.emplace(backend, c, c.d, offset);
    if (c.has_v) v.emplace(backend, c, c.d_v, offset);
    // Sources from one half of the pages, as often as they come, targets from the other, each once.
    std::vector<int64_t> pages(static_cast<size_t>(c.pages)), pairs;
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), random);
    const auto half = static_cast<size_t>(c.pages / 2), count = random() % half;
    for (size_t i = 0; i < count; ++i) {
        const int64_t from = pages[random() % half], to = pages[half + i];
        pairs.insert(pairs.end(), {random() % 7 == 0 ? -1 : from, random() % 9 == 0 ? -3 : to});
        if (pairs.end()[-1] < 0 || pairs.end()[-2] < 0) continue;
        for (std::optional<Cache>* cache : {&k, &v}) {
            if (!*cache) continue;
            const int64_t n = (*cache)->page_elements();
            std::copy_n((*cache)->values.begin() + from * n, n, (*cache)->values.begin() + to * n);
        }
    }
    if (random() % 3 == 0) pairs.insert(pairs.end(), {pages.back(), pages.back()});  // to itself
    StridedTensor pair_tensor = integers(backend, random() % 2 == 0 ? FOVEAL_I32 : FOVEAL_I64,
                                         {static_cast<int64_t>(pairs.size() / 2), 2}, pairs);
    foveal::CopyPagesOptions options;
    if (k) options.k_cache = k->tensor.view();
    if (v) options.v_cache = v->tensor.view();
    options.pairs = pair_tensor.view();
    options.backend = static_cast<foveal::Backend>(backend);
    if (change) change(options);
    foveal::copy_pages(options);
    bool right = true;
    for (std::optional<Cache>* cache : {&k, &v})
        right = right && (!*cache || holds((*cache)->tensor, (*cache)->values));
    return right;
}

TEST_P(CacheCopyDrawn, PagesAreCopiedBitForBit) {
    const uint32_t group = std::get<1>(GetParam());
    for (uint32_t seed = 16 * group; seed < 16 * group + 16; ++seed)
        EXPECT_TRUE(copies_drawn_pages(backend(), seed)) << "seed " << seed;
}

// Sequences, their pages in a table or a list, and entries behind the last that no one may read.
struct Sequences {
    Sequences(std::mt19937& random, const CacheCase& c) : lists(random() % 2 == 0), max_pages(0) {
        const int64_t batch = pick<int64_t>(random, {1, 2, 5, 9});
        const int64_t room = c.pages / batch * c.page_size;
        for (int64_t i = 0; i < batch; ++i) {
            const int64_t length =
                pick<int64_t>(random, {0, 1, c.page_size, c.page_size + 1, static_cast<int64_t>(random() % 99)});
            lengths.push_back(std::min(length, room));
            used.push_back(static_cast<int64_t>(random() % static_cast<uint32_t>(lengths.back() + 1)));
            ends.push_back(ends.back() + lengths.back());
        }
        std::vector<int64_t> pages(static_cast<size_t>(c.pages));
        std::iota(pages.begin(), pages.end(), 0);
        std::shuffle(pages.begin(), pages.end(), random);
        max_pages = c.pages / batch + 2;
        for (size_t i = 0; i < lengths.size(); ++i) {
            std::vector<int64_t> own(static_cast<size_t>(max_pages), i % 2 == 0 ? -1 : 1 << 20);
            const int64_t needed = (lengths[i] + c.page_size - 1) / c.page_size;
            for (int64_t n = 0; n < needed; ++n)
                own[static_cast<size_t>(n)] = pages[i * static_cast<size_t>(c.pages / batch) + static_cast<size_t>(n)];
            table.push_back(own);
            list.insert(list.end(), own.begin(), own.begin() + needed + static_cast<int64_t>(i % 2));
            indptr.push_back(static_cast<int64_t>(list.size()));
        }
    }
    std::vector<int64_t> all_entries() const {
        std::vector<int64_t> all;
        for (const auto& own : table) all.insert(all.end(), own.begin(), own.end());
        return all;
    }

    bool lists;
    int64_t max_pages;
    std::vector<int64_t> lengths, used, ends{0}, list, indptr{0};
    std::vector<std::vector<int64_t>> table;
};

float poison_of(foveal_dtype dtype) {
    if (dtype == FOVEAL_F32) return std::bit_cast<float>(kPoison32);
    if (dtype == FOVEAL_E4M3) return e4m3_to_float(0x7F);
    return dtype == FOVEAL_BF16 ? bf16_to_float(kPoison16) : f16_to_float(kPoison16);
}

// What gather must write of this cache; poison in rows that it must not write.
std::vector<float> gathered(const Cache& cache, const CacheCase& c, const Sequences& all, bool shortened) {
    const int64_t n = cache.row_elements();
    std::vector<float> expected(static_cast<size_t>(all.ends.back() * n), poison_of(c.dtype));
    for (size_t i = 0; i < all.lengths.size(); ++i)
        for (int64_t key = 0; key < (shortened ? all.used[i] : all.lengths[i]); ++key) {
            const int64_t page = all.table[i][static_cast<size_t>(key / c.page_size)];
            std::copy_n(cache.values.begin() + page * cache.page_elements() + key % c.page_size * n, n,
                        expected.begin() + (all.ends[i] + key) * n);
        }
    return expected;
}

bool gathers_drawn(foveal_backend backend, uint32_t seed, const Change<foveal::GatherOptions>& change = {}) {
    std::mt19937 random(seed);
    const CacheCase c = draw_cache(random);
    const Sequences all(random, c);
    const bool shortened = random() % 2 == 0;
    const foveal_dtype numbers = random() % 2 == 0 ? FOVEAL_I32 : FOVEAL_U32;
    const auto batch = static_cast<int64_t>(all.lengths.size());
    StridedTensor ends = integers(backend, FOVEAL_I32, {batch + 1}, all.ends);
    StridedTensor used = integers(backend, FOVEAL_I32, {batch}, all.used);
    StridedTensor table = integers(backend, numbers, {batch, all.max_pages}, all.all_entries());
    StridedTensor indptr = integers(backend, FOVEAL_I32, {batch + 1}, all.indptr);
    StridedTensor indices = integers(backend, numbers, {static_cast<int64_t>(all.list.size())}, all.list);
    foveal::GatherOptions options{.cu_seqlens_k = ends.view(), .backend = static_cast<foveal::Backend>(backend)};
    if (shortened) options.seqused_k = used.view();
    if (all.lists) options.page_indptr = indptr.view(), options.page_indices = indices.view();
    if (!all.lists) options.block_table = table.view();
    std::optional<Cache> caches[2];
    std::optional<StridedTensor> results[2];
    for (const int which : {0, 1}) {
        if (!(which == 0 ? c.has_k : c.has_v)) continue;
        const int64_t d = which == 0 ? c.d : c.d_v, offset = seed % 2 == 0 ? 16 : 17;
        caches[which].emplace(backend, c, d, offset);
        const Shape shape{all.ends.back(), c.heads, d};
        results[which].emplace(backend, c.dtype, shape, drawn_strides(shape, c.out_layout), offset);
        (which == 0 ? options.k_cache : options.v_cache) = caches[which]->tensor.view();
        (which == 0 ? options.k : options.v) = results[which]->view();
    }
    if (change) change(options);
    foveal::gather(options);
    bool right = true;
    for (const int which : {0, 1})
        right = right && (!caches[which] || (holds(*results[which], gathered(*caches[which], c, all, shortened)) &&
                                             holds(caches[which]->tensor, caches[which]->values)));
    return right;
}

TEST_P(CacheCopyDrawn, SequencesAreGatheredBitForBit) {
    const uint32_t group = std::get<1>(GetParam());
    for (uint32_t seed = 1000 + 16 * group; seed < 1016 + 16 * group; ++seed)
        EXPECT_TRUE(gathers_drawn(backend(), seed)) << "seed " << seed;
}

INSTANTIATE_TEST_SUITE_P(Cpu, CacheCopyDrawn,
                         testing::Combine(testing::Values(FOVEAL_BACKEND_CPU), testing::Range(0u, 12u)));
INSTANTIATE_TEST_SUITE_P(Sm90, CacheCopyDrawn,
                         testing::Combine(testing::Values(FOVEAL_BACKEND_SM90), testing::Range(0u, 12u)));

// Does some drawn call that is taken go wrong where something is ignored?
template <class Options>
bool is_noticed(bool (*call)(foveal_backend, uint32_t, const Change<Options>&), const Change<Options>& change) {
    for (uint32_t seed = 1; seed <= 200; ++seed) {
        try {
            if (!call(FOVEAL_BACKEND_CPU, seed, change)) return true;
        } catch (const foveal::Error&) {
        }
    }
    return false;
}

TEST(CpuCacheCopy, WhatIsIgnoredIsNoticed) {
    using Copy = foveal::CopyPagesOptions;
    const std::pair<const char*, Change<Copy>> ignored_of_copy[] = {
        {"v_cache", [](Copy& o) { o.v_cache.rank = o.k_cache.rank == 0 ? o.v_cache.rank : 0; }},
        {"the last pair", [](Copy& o) { o.pairs.shape[0] = std::max<int64_t>(o.pairs.shape[0] - 1, 0); }},
        {"each pair's own pages", [](Copy& o) { o.pairs.stride[0] = 0; }},
    };
    for (const auto& [name, change] : ignored_of_copy) EXPECT_TRUE(is_noticed(copies_drawn_pages, change)) << name;
    using Gather = foveal::GatherOptions;
    const std::pair<const char*, Change<Gather>> ignored_of_gather[] = {
        {"seqused_k", [](Gather& o) { o.seqused_k.rank = 0; }},
        {"seqused_k of each sequence", [](Gather& o) { o.seqused_k.stride[0] = 0; }},
        {"block_table of each sequence", [](Gather& o) { o.block_table.stride[0] = 0; }},
        {"v", [](Gather& o) { o.v.rank = o.k.rank == 0 ? 3 : 0, o.v_cache.rank = o.k.rank == 0 ? 4 : 0; }},
        {"the page's row", [](Gather& o) { o.v_cache.stride[1] = 0; }},
    };
    for (const auto& [name, change] : ignored_of_gather) EXPECT_TRUE(is_noticed(gathers_drawn, change)) << name;
}

class CacheCopy : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override { skip_without(GetParam()); }
    foveal::Backend backend() const { return static_cast<foveal::Backend>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Cpu, CacheCopy, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, CacheCopy, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(CacheCopy, NothingToCopy) {
    const CacheCase c{FOVEAL_BF16, 4, 8, 2, 64, 64, 0, 0, true, false};
    Cache cache(GetParam(), c, 64, 16);
    StridedTensor pairs = integers(GetParam(), FOVEAL_I64, {0, 2}, {});
    foveal::copy_pages({.k_cache = cache.tensor.view(), .pairs = pairs.view(), .backend = backend()});
    StridedTensor ends = integers(GetParam(), FOVEAL_I32, {3}, {0, 0, 0}), table(GetParam(), FOVEAL_I32, {2, 1});
    StridedTensor k(GetParam(), FOVEAL_BF16, {0, 2, 64});
    foveal::gather({.k_cache = cache.tensor.view(),
                    .k = k.view(),
                    .cu_seqlens_k = ends.view(),
                    .block_table = table.view(),
                    .backend = backend()});
    EXPECT_TRUE(holds(cache.tensor, cache.values));
}

// More than a thread of the CPU or a CTA takes at once.
TEST_P(CacheCopy, ManyPages) {
    const CacheCase c{FOVEAL_BF16, 400, 16, 8, 128, 128, 0, 0, true, true};
    Cache k(GetParam(), c, 128, 16), v(GetParam(), c, 128, 16);
    std::vector<int64_t> pairs;
    for (int64_t i = 0; i < 200; ++i) pairs.insert(pairs.end(), {i, 399 - i});
    StridedTensor pair_tensor = integers(GetParam(), FOVEAL_I64, {200, 2}, pairs);
    foveal::copy_pages(
        {.k_cache = k.tensor.view(), .v_cache = v.tensor.view(), .pairs = pair_tensor.view(), .backend = backend()});
    const int64_t n = k.page_elements();
    for (int64_t i = 0; i < 200; ++i)
        for (Cache* cache : {&k, &v})
            std::copy_n(cache->values.begin() + i * n, n, cache->values.begin() + (399 - i) * n);
    EXPECT_TRUE(holds(k.tensor, k.values));
    EXPECT_TRUE(holds(v.tensor, v.values));
}

}  // namespace
}  // namespace foveal_testing
