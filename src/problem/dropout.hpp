// Which weights of the softmax dropout keeps (contract 1.16): the only place that knows. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal {

// Philox4x32-10, a generator without state: a counter and a key give 128 random bits. Salmon, Moraes, Dror and Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011, from which the constants are (Random123's philox4x32).
inline constexpr int32_t kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
inline constexpr uint32_t kPhiloxStep0 = 0x9E3779B9, kPhiloxStep1 = 0xBB67AE85;  // of the key, from round to round

struct PhiloxBlock {
    uint32_t word[4];
};
struct PhiloxKey {
    uint32_t word[2];
};

FOVEAL_HOST_DEVICE PhiloxBlock philox(PhiloxBlock c, PhiloxKey key) {
    for (int32_t round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c.word[0];
        const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c.word[2];
        c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key.word[0], static_cast<uint32_t>(product1),
              static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key.word[1], static_cast<uint32_t>(product0)}};
        key.word[0] += kPhiloxStep0;
        key.word[1] += kPhiloxStep1;
    }
    return c;
}

// A weight has a 16-bit number of its own, and is dropped if that is below the threshold.
inline constexpr uint32_t kDropoutNumbers = 1u << 16;

// p to the nearest multiple of 2^-16, halves up, and never all. p: in [0, 1)
FOVEAL_HOST_DEVICE uint32_t dropout_threshold(float p) {
    const auto nearest = static_cast<uint32_t>(p * static_cast<float>(kDropoutNumbers) + 0.5f);
    return nearest < kDropoutNumbers ? nearest : kDropoutNumbers - 1;
}

// What the weights that are kept are multiplied by: 1 / (1 - p).
FOVEAL_HOST_DEVICE float dropout_scale(uint32_t threshold) {
    return static_cast<float>(kDropoutNumbers) / static_cast<float>(kDropoutNumbers - threshold);
}

// Of a call. state: [2], seed and offset
FOVEAL_HOST_DEVICE PhiloxKey dropout_key(const uint64_t* state) {
    const uint64_t seed = state[0], offset = state[1];
    const PhiloxBlock block = philox({{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32), 0, 0}},
                                     {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}});
    return {{block.word[0], block.word[1]}};
}

// A block of bits serves eight of 32 neighbouring keys: two neighbours of each eight, as a thread has them in the
// accumulators of Hopper's wgmma, so that none draws what it does not use. Word n is of the two in the n-th eight, its
// lower half of the even one.
// head: sequence * h_q + query head; row: of the sequence; pair: which two of an eight
FOVEAL_HOST_DEVICE PhiloxBlock dropout_bits(PhiloxKey key, uint32_t head, uint32_t row, uint32_t keys32,
                                            uint32_t pair) {
    return philox({{keys32 * 4 + pair, row, head, 0}}, key);
}

FOVEAL_HOST_DEVICE bool dropout_keeps(PhiloxKey key, uint32_t threshold, uint32_t head, uint32_t row, uint32_t j) {
    const uint32_t word = dropout_bits(key, head, row, j / 32, j % 8 / 2).word[j / 8 % 4];
    return (j % 2 == 0 ? word % kDropoutNumbers : word / kDropoutNumbers) >= threshold;
}

// Of keys 32 * keys32 and the 31 behind it: bit j is set where key 32 * keys32 + j is kept.
FOVEAL_HOST_DEVICE uint32_t dropout_kept_keys(PhiloxKey key, uint32_t threshold, uint32_t head, uint32_t row,
                                              uint32_t keys32) {
    uint32_t kept = 0;
    for (uint32_t pair = 0; pair < 4; ++pair) {
        const PhiloxBlock bits = dropout_bits(key, head, row, keys32, pair);
        for (uint32_t eight = 0; eight < 4; ++eight) {
            const uint32_t even = bits.word[eight] % kDropoutNumbers >= threshold ? 1 : 0;
            const uint32_t odd = bits.word[eight] / kDropoutNumbers >= threshold ? 2 : 0;
            kept |= (even | odd) << (8 * eight + 2 * pair);
        }
    }
    return kept;
}

}  // namespace foveal
