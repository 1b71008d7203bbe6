// The product of the backward pass that sums over queries; microkernel.hpp has those that sum over channels or keys.
#if defined(FOVEAL_CPU_BACKWARD_MICROKERNEL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_BACKWARD_MICROKERNEL_HPP
#undef FOVEAL_CPU_BACKWARD_MICROKERNEL_HPP
#else
#define FOVEAL_CPU_BACKWARD_MICROKERNEL_HPP
#endif

#include "cpu/simd.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// As in microkernel.hpp.
#define FOVEAL_UNROLL HWY_PRAGMA(GCC unroll 8)

// The block is kKeyRows keys x kChannelVectors vectors of channels: 24 accumulators where there are 32 registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kKeyRows = 6;
inline constexpr int kChannelVectors = 4;
#else
inline constexpr int kKeyRows = 4;
inline constexpr int kChannelVectors = 2;
#endif

// to[j, ..] += sum over queries of weights[j, i] * rows[i, ..] for kKeys keys and kVectors vectors of channels. The sum
// is made by itself and then added, so that rounding errors grow with the root of the subtiles. weights: [kKeys,
// queries] with weights_pitch; rows: [queries, channels] with pitch; to: [kKeys, channels] with pitch
template <int kKeys, int kVectors>
HWY_INLINE void accumulate_block(const float* HWY_RESTRICT weights, int64_t weights_pitch,
                                 const float* HWY_RESTRICT rows, int64_t pitch, int64_t queries,
                                 float* HWY_RESTRICT to) {
    const F32 d;
    const int64_t n = lanes();
    VecF32 acc[kKeys][kVectors];
    FOVEAL_UNROLL
    for (int r = 0; r < kKeys; ++r) {
        FOVEAL_UNROLL
        for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
    }
    for (int64_t i = 0; i < queries; ++i, rows += pitch) {
        VecF32 channels[kVectors];
        FOVEAL_UNROLL
        for (int v = 0; v < kVectors; ++v) channels[v] = hn::Load(d, rows + v * n);
        FOVEAL_UNROLL
        for (int r = 0; r < kKeys; ++r) {
            const VecF32 weight = hn::Set(d, weights[r * weights_pitch + i]);
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(weight, channels[v], acc[r][v]);
        }
    }
    FOVEAL_UNROLL
    for (int r = 0; r < kKeys; ++r) {
        FOVEAL_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            float* const sum = to + r * pitch + v * n;
            hn::Store(hn::Add(hn::Load(d, sum), acc[r][v]), d, sum);
        }
    }
}

// The same of `keys` keys, a multiple of 4.
template <int kVectors>
HWY_NOINLINE void accumulate_channels(const float* weights, int64_t weights_pitch, const float* rows, int64_t pitch,
                                      int64_t queries, int64_t keys, float* to) {
    int64_t j = 0;
    for (; j + kKeyRows <= keys; j += kKeyRows)
        accumulate_block<kKeyRows, kVectors>(weights + j * weights_pitch, weights_pitch, rows, pitch, queries,
                                             to + j * pitch);
    for (; j + 4 <= keys; j += 4)
        accumulate_block<4, kVectors>(weights + j * weights_pitch, weights_pitch, rows, pitch, queries, to + j * pitch);
    for (; j < keys; j += 2)
        accumulate_block<2, kVectors>(weights + j * weights_pitch, weights_pitch, rows, pitch, queries, to + j * pitch);
}

// The same of all channels, up to a whole vector.
inline void accumulate_rows(const float* weights, int64_t weights_pitch, const float* rows, int64_t pitch,
                            int64_t queries, int64_t keys, int64_t channels, float* to) {
    int64_t c = 0;
    for (; c + (kChannelVectors - 1) * lanes() < channels; c += kChannelVectors * lanes())
        accumulate_channels<kChannelVectors>(weights, weights_pitch, rows + c, pitch, queries, keys, to + c);
    for (; c < channels; c += lanes())
        accumulate_channels<1>(weights, weights_pitch, rows + c, pitch, queries, keys, to + c);
}

#undef FOVEAL_UNROLL

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
