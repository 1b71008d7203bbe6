// Intel's AMX (Advanced Matrix Extensions): products of bf16, summed in f32, 16 by 16 results at a time, each of up to
// 32 terms. What the instruction takes for zero is what products of pairs do (pairs.hpp). Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 2, TDPBF16PS.
#pragma once

#include <cstdint>

namespace foveal::cpu {

// Rows of an operand or a result, and 32-bit words of a row: one number of a result, two of an operand.
inline constexpr int64_t kAmxRows = 16, kAmxWords = 16;
inline constexpr int64_t kAmxKeys = 2 * kAmxWords;  // of one product of P and V
inline constexpr int64_t kAmxTile = kAmxRows * kAmxWords;

// Has the CPU it, and does the operating system let this process use it? Asked once; then the answer stays, but for
// what a test says.
bool has_amx();
void allow_amx_for_test(bool allowed);

// The thread's tile registers are set up while it lives; if `wanted`.
class AmxRegisters {
   public:
    explicit AmxRegisters(bool wanted);
    ~AmxRegisters();
    AmxRegisters(const AmxRegisters&) = delete;
    AmxRegisters& operator=(const AmxRegisters&) = delete;

   private:
    const bool are_set_up_;
};

// s[j, i] = sum over words of k[j, w] * q[w, i], each word two products.
// q: [words, vectors * 16]; k: [keys, words] with pitch; s: [keys, vectors * 16]. words: a multiple of 16, vectors: 1
// to 3, keys: a multiple of 32.
void amx_score_keys(const uint32_t* q, int64_t vectors, const uint32_t* k, int64_t pitch, int64_t words, int64_t keys,
                    float* s);

// o[c, i] += sum over keys of v[key, c] * p[key, i].
// p: [keys / 2, vectors * 16], words of two keys; v: for each 16 channels `pitch` words from each other, for each 32
// keys the next of kAmxTile words, [16 channels, 16] of two keys each; o: [channels, vectors * 16]. channels: a
// multiple of 16, keys: of 32.
void amx_accumulate_values(const uint32_t* p, int64_t vectors, const uint32_t* v, int64_t pitch, int64_t channels,
                           int64_t keys, float* o);

}  // namespace foveal::cpu
