// share_memory() against the list of all bytes of both tensors.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "problem/dtype.hpp"
#include "problem/overlap.hpp"

namespace foveal {
namespace {

constexpr foveal_dtype kTypes[] = {FOVEAL_F32, FOVEAL_BF16, FOVEAL_BOOL};

foveal_tensor tensor_of(int64_t address, foveal_dtype dtype, std::initializer_list<int64_t> shape,
                        std::initializer_list<int64_t> strides) {
    foveal_tensor t{};
    t.data = reinterpret_cast<void*>(address);  // never read
    t.dtype = dtype;
    t.rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape);
    std::copy(strides.begin(), strides.end(), t.stride);
    return t;
}

std::set<int64_t> bytes_of(const foveal_tensor& t) {
    std::set<int64_t> bytes;
    int64_t elements = 1;
    for (int i = 0; i < t.rank; ++i) elements *= t.shape[i];
    for (int64_t n = 0; n < elements; ++n) {
        int64_t offset = 0;
        for (int64_t i = t.rank - 1, rest = n; i >= 0; rest /= t.shape[i--]) offset += rest % t.shape[i] * t.stride[i];
        for (int64_t byte = 0; byte < foveal::bytes_of(dtype_of(t)); ++byte)
            bytes.insert(reinterpret_cast<int64_t>(t.data) + offset * foveal::bytes_of(dtype_of(t)) + byte);
    }
    return bytes;
}

bool have_common_byte(const foveal_tensor& a, const foveal_tensor& b) {
    const std::set<int64_t> of_b = bytes_of(b);
    for (const int64_t byte : bytes_of(a))
        if (of_b.contains(byte)) return true;
    return false;
}

TEST(Overlap, AgreesWithTheListOfBytes) {
    std::mt19937 random(3);
    const auto below = [&random](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    const auto draw = [&](int64_t address) {
        foveal_tensor t = tensor_of(address, kTypes[below(3)], {}, {});
        t.rank = 2 + static_cast<int32_t>(below(3));
        for (int i = 0; i < t.rank; ++i) {
            t.shape[i] = below(8) == 0 ? below(2) : 1 + below(4);
            t.stride[i] = i + 1 == t.rank ? 1 : 1 + below(30);
        }
        return t;
    };
    int shared = 0;
    for (int round = 0; round < 20000; ++round) {
        const foveal_tensor a = draw(1000), b = draw(900 + below(300));
        const bool expected = have_common_byte(a, b);
        ASSERT_EQ(share_memory(a, b), expected) << round;
        ASSERT_EQ(share_memory(b, a), expected) << round;
        shared += expected;
    }
    EXPECT_GT(shared, 4000);
    EXPECT_LT(shared, 16000);
}

TEST(Overlap, InterleavedViewsOfOneBufferLieApart) {
    // [rows, parts, h, d] with 5 parts.
    const auto part = [](int64_t n) {
        return tensor_of(4096 + n * 8 * 128 * 2, FOVEAL_BF16, {100000, 8, 128}, {5 * 8 * 128, 128, 1});
    };
    EXPECT_TRUE(share_memory(part(0), part(0)));
    for (int64_t n = 1; n < 5; ++n) EXPECT_FALSE(share_memory(part(0), part(n)));
    EXPECT_TRUE(share_memory(part(0), part(5)));
}

TEST(Overlap, SurvivesTheLargestReaches) {
    constexpr int64_t kHuge = (int64_t{1} << 61) - 2;
    const foveal_tensor a = tensor_of(4096, FOVEAL_F32, {2, 2}, {kHuge, 1});
    const foveal_tensor b = tensor_of(4096, FOVEAL_F32, {kHuge}, {1});
    EXPECT_TRUE(share_memory(a, b));
    EXPECT_FALSE(share_memory(a, tensor_of(5000, FOVEAL_F32, {2, 2}, {kHuge, 1})));
    EXPECT_TRUE(share_memory(b, tensor_of(5000, FOVEAL_BOOL, {1}, {1})));
}

TEST(Overlap, SameMemoryIsTheSameElementsAtTheSamePlaces) {
    const foveal_tensor a = tensor_of(4096, FOVEAL_F32, {1, 3, 4}, {7, 4, 1});
    EXPECT_TRUE(same_memory(a, tensor_of(4096, FOVEAL_F32, {1, 3, 4}, {99, 4, 1})));  // of size 1: no stride
    EXPECT_FALSE(same_memory(a, tensor_of(4100, FOVEAL_F32, {1, 3, 4}, {7, 4, 1})));
    EXPECT_FALSE(same_memory(a, tensor_of(4096, FOVEAL_BF16, {1, 3, 4}, {7, 4, 1})));
    EXPECT_FALSE(same_memory(a, tensor_of(4096, FOVEAL_F32, {1, 3, 4}, {7, 8, 1})));
}

}  // namespace
}  // namespace foveal
