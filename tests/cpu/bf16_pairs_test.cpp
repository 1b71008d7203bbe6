// Products of bf16 in pairs take subnormal numbers for zero: where the data have such, or infinities, they are left
// alone (src/cpu/pairs.hpp).
#include "cpu/simd_targets.hpp"
// Highway's headers follow.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu/amx.hpp"
#include "foveal/foveal.h"
#include "tests/cpu/each_target.hpp"

namespace foveal_testing {
namespace {

constexpr int64_t kRows = 100;  // of q, k and v: a tile of queries, two blocks of keys
constexpr int64_t kChannels = 24;
constexpr uint16_t kOne = 0x3F80;
constexpr uint16_t kTwo = 0x4000;
constexpr uint16_t kSubnormal = 0x0040;  // 2^-127, the smallest normal number is 2^-126
constexpr uint16_t kInfinity = 0x7F80;

struct Problem {
    std::vector<uint16_t> q, k, v, out;
    float scale = 1;
    int64_t window_right = FOVEAL_UNLIMITED;

    Problem() : q(kRows * kChannels), k(q.size()), v(q.size()), out(q.size(), 0x7FC0) {}

    static foveal_tensor described(std::vector<uint16_t>& data) {
        foveal_tensor tensor{};
        tensor.data = data.data();
        tensor.dtype = FOVEAL_BF16;
        tensor.rank = 4;
        const int64_t shape[4] = {1, kRows, 1, kChannels};
        const int64_t stride[4] = {kRows * kChannels, kChannels, kChannels, 1};
        std::memcpy(tensor.shape, shape, sizeof(shape));
        std::memcpy(tensor.stride, stride, sizeof(stride));
        return tensor;
    }

    void run() {
        foveal_forward_args args;
        foveal_forward_args_init(&args);
        args.backend = FOVEAL_BACKEND_CPU;
        args.scale = scale;
        args.window_right = window_right;
        args.q = described(q);
        args.k = described(k);
        args.v = described(v);
        args.out = described(out);
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    }
};

// On every SIMD target, and on a CPU with AMX without it too.
void for_each_product(const std::function<void()>& body) {
    for (const bool amx : {true, false}) {
        foveal::cpu::allow_amx_for_test(amx);
        foveal::cpu::for_each_target(body);
    }
    foveal::cpu::allow_amx_for_test(true);
}

void fill_row(std::vector<uint16_t>& tensor, int64_t row, uint16_t value) {
    std::fill_n(tensor.begin() + row * kChannels, kChannels, value);
}

TEST(CpuBf16Pairs, SubnormalValuesCount) {
    for_each_product([] {
        Problem problem;
        std::fill(problem.v.begin(), problem.v.end(), kSubnormal);
        problem.run();
        for (const uint16_t x : problem.out) ASSERT_NEAR(x, kSubnormal, 3);  // steps of 2^-133
    });
}

// One key has a score of 24 by it, the others 0, and so all the weight.
TEST(CpuBf16Pairs, SubnormalKeysCount) {
    for_each_product([] {
        Problem problem;
        problem.scale = 0x1p127f;
        std::fill(problem.q.begin(), problem.q.end(), kOne);
        fill_row(problem.k, 70, kSubnormal);
        fill_row(problem.v, 70, kTwo);
        problem.run();
        for (const uint16_t x : problem.out) ASSERT_EQ(x, kTwo);
    });
}

TEST(CpuBf16Pairs, SubnormalQueriesCount) {
    for_each_product([] {
        Problem problem;
        problem.scale = 0x1p127f;
        fill_row(problem.q, 3, kSubnormal);
        fill_row(problem.k, 70, kOne);
        fill_row(problem.v, 70, kTwo);
        problem.run();
        for (int64_t c = 0; c < kChannels; ++c) ASSERT_EQ(problem.out[static_cast<size_t>(3 * kChannels + c)], kTwo);
    });
}

// 0 * inf is NaN: rows before the key keep their values (contract 1.6 lets the tile's be lost; the CPU loses none).
TEST(CpuBf16Pairs, AnInfinityReachesTheRowsThatSeeIt) {
    for_each_product([] {
        Problem problem;
        problem.window_right = 0;
        std::fill(problem.v.begin(), problem.v.end(), kOne);
        fill_row(problem.v, 50, kInfinity);
        problem.run();
        for (int64_t row = 0; row < kRows; ++row)
            ASSERT_EQ(problem.out[static_cast<size_t>(row * kChannels)], row < 50 ? kOne : kInfinity) << row;
    });
}

}  // namespace
}  // namespace foveal_testing
