#include "tests/support/dropout_oracle.hpp"

#include <algorithm>
#include <cmath>

namespace foveal_testing {
namespace {

constexpr int64_t kNumbers = 65536;

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x & 0xFFFFFFFFu); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

}  // namespace

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 1; round <= 10; ++round) {
        const uint64_t a = uint64_t{3528531795} * counter[0], b = uint64_t{3449720151} * counter[2];
        counter = {high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)};
        key = {key[0] + uint32_t{2654435769}, key[1] + uint32_t{3144134277}};
    }
    return counter;
}

int64_t dropped_of_65536(float dropout_p) {
    return std::min(std::llround(static_cast<double>(dropout_p) * kNumbers), kNumbers - 1LL);
}

double dropout_factor(float dropout_p) {
    return static_cast<double>(kNumbers) / static_cast<double>(kNumbers - dropped_of_65536(dropout_p));
}

std::vector<float> kept_keys(const Case& c, int64_t sequence, int64_t head_q, int64_t row, int64_t len_k) {
    const auto [seed, offset] = c.dropout_state();
    const auto of_call = philox4x32_10({low(offset), high(offset), 0, 0}, {low(seed), high(seed)});
    const auto head = static_cast<uint32_t>(sequence * c.heads_q + head_q);
    std::vector<float> kept(static_cast<size_t>(len_k));
    std::array<std::array<uint32_t, 4>, 4> blocks{};
    for (int64_t j = 0; j < len_k; ++j) {
        if (j % 32 == 0) {
            for (uint32_t t = 0; t < 4; ++t)
                blocks[t] = philox4x32_10({static_cast<uint32_t>(j / 32) * 4 + t, static_cast<uint32_t>(row), head, 0},
                                          {of_call[0], of_call[1]});
        }
        const auto t = static_cast<size_t>(j % 8 / 2), n = static_cast<size_t>(j / 8 % 4);
        const int64_t number = 2 * static_cast<int64_t>(n) + j % 2;  // of eight in the block
        const uint32_t word = blocks[t][static_cast<size_t>(number / 2)];
        const uint32_t r16 = number % 2 == 0 ? word & 0xFFFFu : word >> 16;
        kept[static_cast<size_t>(j)] = static_cast<int64_t>(r16) >= dropped_of_65536(c.dropout) ? 1.0f : 0.0f;
    }
    return kept;
}

}  // namespace foveal_testing
