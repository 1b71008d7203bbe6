// The value of every input element, a function of its place alone: the host and the device compute the same ones.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FOVEAL_TESTING_HOST_DEVICE __host__ __device__
#else
#define FOVEAL_TESTING_HOST_DEVICE
#endif

namespace foveal_testing {

struct Case;

inline constexpr int kMaxSinkKeys = 4;

// How a case's inputs are made, in the form that a kernel can take.
struct InputRecipe {
    uint64_t seed = 1;
    float q_factor = 1;      // on normal q
    float v_limit = 0;       // |v| lies between half of it and all of it; 0: normal
    int64_t nan_value = -1;  // the key whose v is NaN; -1: none
    bool flat = false;       // every key is key 0
    bool steered = false;    // channel 0 of q is kSteering, so that channel 0 of k moves a key's logits for all queries
    float grow_per_key = 0;  // of channel 0 of k
    int sink_keys = 0;
    float sink_height[kMaxSinkKeys] = {};  // channel 0 of the sink's key
    int sink_position[kMaxSinkKeys] = {};  // 0: first key, 1: middle, 2: last
    bool bias_inf = false;                 // the bias is -inf where the mask, drawn alike, would be false
};
inline constexpr float kSteering = 8;

// The tensors of a call whose elements are drawn.
enum class TensorId { kQ, kK, kV, kOut, kLse, kAlibi, kSinks, kBias, kMask, kQDescale, kKDescale, kVDescale };

// Where an element stands. len_k: the sequence's used keys.
// Of bias and mask, row is the query and channel the key; len_k: all keys.
struct Place {
    TensorId tensor;
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
        for (int i = 0; i < recipe.sink_keys; ++i) {
            if (p.row == sink_key(recipe.sink_position[i], p.len_k))
                return p.channel == 0 ? recipe.sink_height[i] : 0.0f;
        }
        if (p.channel == 0) return recipe.grow_per_key * static_cast<float>(p.row);
    }
    if (recipe.flat) p.row = 0;
    return normal_of(hash_of(recipe, p));
}

FOVEAL_TESTING_HOST_DEVICE inline float value_value(const InputRecipe& recipe, const Place& p) {
    if (p.row == recipe.nan_value) return NAN;
    const uint64_t hash = hash_of(recipe, p);
    if (recipe.v_limit == 0) return normal_of(hash);
    const float magnitude = recipe.v_limit * (0.5f + static_cast<float>(hash >> 40) * 0x1p-25f);
    return (hash & 1) ? magnitude : -magnitude;
}

// Is the key hidden from the query? A sixteenth each of the queries sees nothing, nothing before some key, and one key
// alone; the others see three keys of four.
FOVEAL_TESTING_HOST_DEVICE inline bool is_hidden(const InputRecipe& recipe, const Place& p) {
    Place whole_row = p;
    whole_row.channel = (1 << 20) - 1;
    const uint64_t row_hash = hash_of(recipe, whole_row);
    const auto key = static_cast<int64_t>((row_hash >> 8) % static_cast<uint64_t>(p.len_k));
    switch (row_hash & 15) {
        case 0:
            return true;
        case 1:
            return p.channel < key;
        case 2:
            return p.channel != key;
        default:
            return (hash_of(recipe, p) & 3) == 0;
    }
}

FOVEAL_TESTING_HOST_DEVICE inline float bias_value(const InputRecipe& recipe, const Place& p) {
    if (recipe.bias_inf && is_hidden(recipe, p)) return -HUGE_VALF;
    return normal_of(hash_of(recipe, p));
}

// Any byte but 0 is true.
FOVEAL_TESTING_HOST_DEVICE inline uint8_t mask_value(const InputRecipe& recipe, const Place& p) {
    if (is_hidden(recipe, p)) return 0;
    constexpr uint8_t kTrue[] = {0x01, 0xFF, 0x80, 0x02};
    return kTrue[hash_of(recipe, p) >> 8 & 3];
}

// Of q, k and v.
FOVEAL_TESTING_HOST_DEVICE inline float input_value(const InputRecipe& recipe, const Place& p) {
    if (p.tensor == TensorId::kK) return key_value(recipe, p);
    if (p.tensor == TensorId::kV) return value_value(recipe, p);
    if (recipe.steered && p.channel == 0) return kSteering;
    return recipe.q_factor * normal_of(hash_of(recipe, p));
}

// Of k and v at a key that no row of the sequence sees, in place of input_value(): what would show in a result.
FOVEAL_TESTING_HOST_DEVICE inline float unseen_value(const Place& p) {
    const float values[] = {NAN, HUGE_VALF, -HUGE_VALF, 3e38f};
    return values[p.row & 3];
}

InputRecipe recipe_of(const Case& c);

// What an element of q, k or v, of this sequence, K/V head and row, is multiplied by.
float descale_of(const Case& c, TensorId id, int64_t sequence, int64_t head_k, int64_t row);

}  // namespace foveal_testing
