// The value of every input element, a function of its place alone: the host and the device compute the same ones.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FOVEAL_TESTING_HOST_DEVICE __host__ __device__
#else
#define FOVEAL_TESTING_HOST_DEVICE
#endif

namespace foveal_testing {

struct Case;

inline constexpr int kMaxSinks = 4;

// How a case's inputs are made, in the form that a kernel can take.
struct InputRecipe {
    uint64_t seed = 1;
    float q_factor = 1;      // on normal q
    float v_limit = 0;       // |v| lies between half of it and all of it; 0: normal
    bool flat = false;       // every key is key 0
    bool steered = false;    // channel 0 of q is kSteering, so that channel 0 of k moves a key's logits for all queries
    float grow_per_key = 0;  // of channel 0 of k
    int sinks = 0;
    float sink_height[kMaxSinks] = {};  // channel 0 of the sink's key
    int sink_position[kMaxSinks] = {};  // 0: first key, 1: middle, 2: last
};
inline constexpr float kSteering = 8;

// Where an element stands. tensor: 0 q, 1 k, 2 v. len_k: the sequence's used keys.
struct Place {
    int tensor;
    int64_t sequence, head, row, channel;
    int64_t len_k;
};

FOVEAL_TESTING_HOST_DEVICE inline uint64_t mix64(uint64_t x) {  // the finaliser of splitmix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

FOVEAL_TESTING_HOST_DEVICE inline uint64_t hash_of(const InputRecipe& recipe, const Place& p) {
    uint64_t h = mix64(recipe.seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(p.tensor));
    h = mix64(h ^ static_cast<uint64_t>(p.sequence) << 32 ^ static_cast<uint64_t>(p.head));
    return mix64(h ^ static_cast<uint64_t>(p.row) << 20 ^ static_cast<uint64_t>(p.channel));
}

// Nearly normal, variance 1, |x| < 6: the sum of twelve 16-bit uniforms, exact on every machine.
FOVEAL_TESTING_HOST_DEVICE inline float normal_of(uint64_t hash) {
    int32_t sum = 0;
    for (int i = 0; i < 3; ++i) {
        const uint64_t bits = mix64(hash + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u);
        sum += static_cast<int32_t>(bits & 0xFFFF) + static_cast<int32_t>(bits >> 16 & 0xFFFF) +
               static_cast<int32_t>(bits >> 32 & 0xFFFF) + static_cast<int32_t>(bits >> 48);
    }
    return static_cast<float>(sum - 6 * 65535) * (1.0f / 65536);
}

FOVEAL_TESTING_HOST_DEVICE inline int64_t sink_key(int position, int64_t len_k) {
    return position == 0 ? 0 : position == 1 ? len_k / 2 : len_k - 1;
}

FOVEAL_TESTING_HOST_DEVICE inline float key_value(const InputRecipe& recipe, Place p) {
    if (recipe.steered) {
        for (int i = 0; i < recipe.sinks; ++i) {
            if (p.row == sink_key(recipe.sink_position[i], p.len_k))
                return p.channel == 0 ? recipe.sink_height[i] : 0.0f;
        }
        if (p.channel == 0) return recipe.grow_per_key * static_cast<float>(p.row);
    }
    if (recipe.flat) p.row = 0;
    return normal_of(hash_of(recipe, p));
}

FOVEAL_TESTING_HOST_DEVICE inline float value_value(const InputRecipe& recipe, const Place& p) {
    const uint64_t hash = hash_of(recipe, p);
    if (recipe.v_limit == 0) return normal_of(hash);
    const float magnitude = recipe.v_limit * (0.5f + static_cast<float>(hash >> 40) * 0x1p-25f);
    return (hash & 1) ? magnitude : -magnitude;
}

FOVEAL_TESTING_HOST_DEVICE inline float input_value(const InputRecipe& recipe, const Place& p) {
    if (p.tensor == 1) return key_value(recipe, p);
    if (p.tensor == 2) return value_value(recipe, p);
    if (recipe.steered && p.channel == 0) return kSteering;
    return recipe.q_factor * normal_of(hash_of(recipe, p));
}

InputRecipe recipe_of(const Case& c);

}  // namespace foveal_testing
