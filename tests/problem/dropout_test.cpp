// Dropout's generator and rule, and the mask that the C ABI writes down.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "foveal/foveal.h"
#include "problem/dropout.hpp"

namespace foveal {
namespace {

// The known answers that Random123 publishes of philox4x32-10 (its file kat_vectors).
TEST(Dropout, PhiloxGivesThePublishedAnswers) {
    const struct {
        PhiloxBlock counter;
        PhiloxKey key;
        std::array<uint32_t, 4> answer;
    } known[] = {
        {{{0, 0, 0, 0}}, {{0, 0}}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
         {{0xffffffff, 0xffffffff}},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
         {{0xa4093822, 0x299f31d0}},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const auto& [counter, key, answer] : known) {
        const PhiloxBlock block = philox(counter, key);
        for (size_t i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], answer[i]);
    }
}

TEST(Dropout, ThresholdsAreRoundedAndNeverAll) {
    EXPECT_EQ(dropout_threshold(0), 0u);
    EXPECT_EQ(dropout_threshold(0x1p-18f), 0u);
    EXPECT_EQ(dropout_threshold(0x1p-17f), 1u);  // halves up
    EXPECT_EQ(dropout_threshold(0x1p-16f), 1u);
    EXPECT_EQ(dropout_threshold(0.1f), 6554u);
    EXPECT_EQ(dropout_threshold(0.5f), 32768u);
    EXPECT_EQ(dropout_threshold(0.99999f), 65535u);
    EXPECT_EQ(dropout_threshold(0x1.fffffep-1f), 65535u);
    EXPECT_EQ(dropout_scale(0), 1.0f);
    EXPECT_EQ(dropout_scale(32768), 2.0f);
    EXPECT_EQ(dropout_scale(65535), 65536.0f);
}

TEST(Dropout, AllHalvesOfTheStateMatter) {
    const uint64_t state[] = {0x0000000100000002, 0x0000000300000004};
    const PhiloxKey key = dropout_key(state);
    for (int i = 0; i < 2; ++i) {
        for (const uint64_t bit : {uint64_t{1} << 7, uint64_t{1} << 40}) {
            uint64_t other[] = {state[0], state[1]};
            other[i] ^= bit;
            const PhiloxKey changed = dropout_key(other);
            EXPECT_TRUE(changed.word[0] != key.word[0] && changed.word[1] != key.word[1]) << i << " " << bit;
        }
    }
}

TEST(Dropout, AWholeRunOfKeysIsThatOfEachKey) {
    const PhiloxKey key{{1, 2}};
    for (const uint32_t row : {0u, 1u, 536870910u}) {
        for (const uint32_t keys32 : {0u, 1u, 7u, 16777215u}) {
            const uint32_t kept = dropout_kept_keys(key, 30000, 0xFFFFFFFF, row, keys32);
            for (uint32_t j = 0; j < 32; ++j)
                ASSERT_EQ(kept >> j & 1, dropout_keeps(key, 30000, 0xFFFFFFFF, row, keys32 * 32 + j) ? 1u : 0u);
        }
    }
}

// Every 16-bit number of a block belongs to one key of its 32, so that all weights are drawn independently.
TEST(Dropout, NoTwoKeysShareANumber) {
    const PhiloxKey key{{1, 2}};
    std::vector<uint32_t> numbers;
    for (uint32_t j = 0; j < 64; ++j) {
        uint32_t least = 0, above = kDropoutNumbers;  // the number is in [least, above)
        while (above - least > 1) {
            const uint32_t middle = (least + above) / 2;
            (dropout_keeps(key, middle, 3, 4, j) ? least : above) = middle;
        }
        numbers.push_back(least);
    }
    for (size_t a = 0; a < numbers.size(); ++a)
        for (size_t b = 0; b < a; ++b) EXPECT_NE(numbers[a], numbers[b]) << a << " " << b;
}

TEST(DropoutMask, IsTheRuleWrittenDown) {
    const uint64_t state[] = {11, 22};
    constexpr int64_t kBatch = 2, kHeads = 3, kRows = 5, kKeys = 45;
    std::vector<uint8_t> mask(kBatch * kHeads * kRows * kKeys, 7);
    ASSERT_EQ(foveal_dropout_mask(kBatch, kHeads, kRows, kKeys, 0.25f, state, mask.data()), FOVEAL_OK);
    size_t at = 0;
    for (uint32_t head = 0; head < kBatch * kHeads; ++head)
        for (uint32_t row = 0; row < kRows; ++row)
            for (uint32_t j = 0; j < kKeys; ++j)
                ASSERT_EQ(mask[at++], dropout_keeps(dropout_key(state), 16384, head, row, j) ? 1 : 0);
    ASSERT_EQ(foveal_dropout_mask(kBatch, kHeads, kRows, kKeys, 0, nullptr, mask.data()), FOVEAL_OK);
    for (const uint8_t kept : mask) ASSERT_EQ(kept, 1);
}

// 20 standard deviations would be a wrong rule.
TEST(DropoutMask, KeepsAsManyAsItSays) {
    constexpr int64_t kHeads = 4, kRows = 300, kKeys = 1000;
    constexpr double kCount = kHeads * kRows * kKeys;
    for (const float p : {0.01f, 0.1f, 0.5f, 0.9f}) {
        const uint64_t state[] = {1, 2};
        std::vector<uint8_t> mask(kHeads * kRows * kKeys);
        ASSERT_EQ(foveal_dropout_mask(1, kHeads, kRows, kKeys, p, state, mask.data()), FOVEAL_OK);
        double kept = 0, pairs = 0;
        for (size_t i = 0; i < mask.size(); ++i) {
            kept += mask[i];
            pairs += i % 2 == 1 && mask[i] != 0 && mask[i - 1] != 0;  // neighbours know nothing of each other
        }
        const double q = 1 - static_cast<double>(p);
        EXPECT_NEAR(kept / kCount, q, 5 * std::sqrt(q * (1 - q) / kCount)) << p;
        EXPECT_NEAR(pairs / (kCount / 2), q * q, 5 * std::sqrt(q * q / (kCount / 2))) << p;
    }
}

TEST(DropoutMask, RefusesByName) {
    const uint64_t state[] = {1, 2};
    uint8_t mask[8];
    const auto refusal = [&](int64_t b, int64_t h, int64_t s_q, int64_t s_k, float p, const uint64_t* at, uint8_t* to) {
        return foveal_dropout_mask(b, h, s_q, s_k, p, at, to) == FOVEAL_INVALID_ARGUMENT ? foveal_last_error() : "";
    };
    EXPECT_EQ(std::string(refusal(-1, 1, 2, 4, 0.5f, state, mask)), "b is -1; it must lie in [0, 4294967296]");
    EXPECT_EQ(std::string(refusal(1, 1, 2, int64_t{1} << 29, 0.5f, state, mask)),
              "s_k is 536870912; it must lie in [0, 536870911]");
    EXPECT_EQ(std::string(refusal(1, 1, 2, 4, 1, state, mask)), "dropout_p is 1; it must lie in [0, 1)");
    EXPECT_EQ(std::string(refusal(1, 1, 2, 4, 0.5f, nullptr, mask)), "dropout_state is NULL and dropout_p is 0.5");
    EXPECT_EQ(std::string(refusal(1, 1, 2, 4, 0.5f, state, nullptr)), "mask is NULL");
    EXPECT_NE(std::string(refusal(1 << 20, 1 << 20, 0, 0, 0.5f, state, mask)).find("at most 2^32 heads"),
              std::string::npos);
    EXPECT_EQ(foveal_dropout_mask(0, 1, 2, 4, 0.5f, nullptr, nullptr), FOVEAL_OK);
}

}  // namespace
}  // namespace foveal
