// The two products of AMX beside sums in double, and whole calls with it beside the same without.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/amx.hpp"
#include "foveal/foveal.h"

namespace foveal::cpu {
namespace {

class CpuAmx : public ::testing::Test {
   protected:
    void SetUp() override {
        if (!has_amx()) GTEST_SKIP() << "SKIPPED: no AMX";
    }
    void TearDown() override { allow_amx_for_test(true); }
};

float number_of(uint32_t bf16) {
    const uint32_t bits = bf16 << 16;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}
double product_of(uint32_t a, uint32_t b) {
    return double{number_of(a & 0xFFFF)} * number_of(b & 0xFFFF) + double{number_of(a >> 16)} * number_of(b >> 16);
}

// Words of two numbers around 1, of either sign.
std::vector<uint32_t> words(int64_t count, uint32_t seed) {
    std::mt19937 engine(seed);
    std::vector<uint32_t> drawn(static_cast<size_t>(count));
    for (uint32_t& word : drawn) word = (engine() & 0x80FF80FF) | 0x3F003F00;
    return drawn;
}

TEST_F(CpuAmx, ScoresAreTheProductsOfAllWords) {
    const AmxRegisters registers(true);
    for (const int64_t vectors : {1, 2, 3})
        for (const int64_t count : {16, 64, 128})
            for (const int64_t keys : {32, 64}) {
                const int64_t width = vectors * kAmxWords, pitch = count + 16;
                const std::vector<uint32_t> q = words(count * width, 1), k = words(keys * pitch, 2);
                std::vector<float> s(static_cast<size_t>(keys * width), NAN);
                amx_score_keys(q.data(), vectors, k.data(), pitch, count, keys, s.data());
                for (int64_t j = 0; j < keys; ++j)
                    for (int64_t i = 0; i < width; ++i) {
                        double sum = 0;
                        for (int64_t w = 0; w < count; ++w)
                            sum += product_of(k[static_cast<size_t>(j * pitch + w)],
                                              q[static_cast<size_t>(w * width + i)]);
                        ASSERT_NEAR(s[static_cast<size_t>(j * width + i)], sum, 1e-4) << vectors << count << keys;
                    }
            }
}

TEST_F(CpuAmx, ValuesAreAddedToWhatIsThere) {
    const AmxRegisters registers(true);
    for (const int64_t vectors : {1, 2, 3})
        for (const int64_t channels : {16, 48})
            for (const int64_t keys : {32, 64}) {
                const int64_t width = vectors * kAmxWords, pitch = 2 * kAmxTile;
                const std::vector<uint32_t> p = words(keys / 2 * width, 3), v = words(channels / 16 * pitch, 4);
                std::vector<float> o(static_cast<size_t>(channels * width), 0.5f);
                amx_accumulate_values(p.data(), vectors, v.data(), pitch, channels, keys, o.data());
                for (int64_t c = 0; c < channels; ++c)
                    for (int64_t i = 0; i < width; ++i) {
                        double sum = 0.5;
                        for (int64_t j = 0; j < keys / 2; ++j)
                            sum += product_of(
                                v[static_cast<size_t>(c / 16 * pitch + j / 16 * kAmxTile + c % 16 * 16 + j % 16)],
                                p[static_cast<size_t>(j * width + i)]);
                        ASSERT_NEAR(o[static_cast<size_t>(c * width + i)], sum, 1e-4) << vectors << channels << keys;
                    }
            }
}

// A thread that was given other work in between, and one without registers, are as before.
TEST_F(CpuAmx, RegistersAreGivenBack) {
    for (int i = 0; i < 3; ++i) {
        const AmxRegisters none(false);
        const AmxRegisters registers(true);
        const std::vector<uint32_t> one = words(64 * 32, 5);
        std::vector<float> s(32 * 16, NAN);
        amx_score_keys(one.data(), 1, one.data(), 32, 16, 32, s.data());
        ASSERT_FALSE(std::isnan(s[0]));
    }
}

struct Shape {
    int64_t s_q, s_k, d, d_v, right;
};

std::vector<uint16_t> drawn(int64_t count, uint32_t seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> tensor(static_cast<size_t>(count));
    for (uint16_t& x : tensor) {
        const float number = normal(engine);
        uint32_t bits;
        std::memcpy(&bits, &number, sizeof(bits));
        x = static_cast<uint16_t>(bits >> 16);
    }
    return tensor;
}

foveal_tensor described(void* data, foveal_dtype dtype, int64_t rows, int64_t channels) {
    foveal_tensor tensor{};
    tensor.data = data;
    tensor.dtype = dtype;
    tensor.rank = 4;
    const int64_t shape[4] = {1, rows, 1, channels}, stride[4] = {rows * channels, channels, channels, 1};
    std::memcpy(tensor.shape, shape, sizeof(shape));
    std::memcpy(tensor.stride, stride, sizeof(stride));
    return tensor;
}

std::vector<float> attended(const Shape& shape) {
    std::vector<uint16_t> q = drawn(shape.s_q * shape.d, 6), k = drawn(shape.s_k * shape.d, 7),
                          v = drawn(shape.s_k * shape.d_v, 8);
    std::vector<float> out(static_cast<size_t>(shape.s_q * shape.d_v), NAN);
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.window_right = shape.right;
    args.q = described(q.data(), FOVEAL_BF16, shape.s_q, shape.d);
    args.k = described(k.data(), FOVEAL_BF16, shape.s_k, shape.d);
    args.v = described(v.data(), FOVEAL_BF16, shape.s_k, shape.d_v);
    args.out = described(out.data(), FOVEAL_F32, shape.s_q, shape.d_v);
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    return out;
}

// Unrounded results: P is rounded to bf16 in both, from scores that differ by their rounding alone.
TEST_F(CpuAmx, ACallGivesTheSameUpToRounding) {
    const Shape shapes[] = {{100, 100, 64, 64, 0},     {97, 333, 128, 128, FOVEAL_UNLIMITED},
                            {64, 65, 24, 40, 0},       {200, 31, 8, 8, 0},
                            {49, 1000, 192, 128, 100}, {33, 64, 33, 17, FOVEAL_UNLIMITED},
                            {70, 129, 256, 256, 0},    {300, 300, 16, 16, 20}};
    for (const Shape& shape : shapes) {
        const std::string about = std::to_string(shape.s_q) + " x " + std::to_string(shape.s_k) + ", d " +
                                  std::to_string(shape.d) + ", " + std::to_string(shape.d_v);
        allow_amx_for_test(true);
        const std::vector<float> with = attended(shape), again = attended(shape);
        allow_amx_for_test(false);
        const std::vector<float> without = attended(shape);
        EXPECT_EQ(with, again) << about;
        double squares = 0, all = 0;
        for (size_t i = 0; i < with.size(); ++i) {
            squares += std::pow(double{with[i]} - without[i], 2);
            all += std::pow(double{without[i]}, 2);
        }
        EXPECT_LT(std::sqrt(squares), 1e-3 * std::sqrt(all) + 1e-30) << about;
    }
}

}  // namespace
}  // namespace foveal::cpu
