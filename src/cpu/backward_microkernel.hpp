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

// The block is kKeyRows keys x kChannelVectors vectors of channels. kRows is a multiple of kKeyRows.
inline constexpr int kKeyRows = 4;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kChannelVectors = 4;
#else
inline constexpr int kChannelVectors = 2;
#endif

// to[j, ..] += sum over queries of weights[j, i] * rows[i, ..], kVectors vectors of channels; keys is a multiple of
// kKeyRows. The sum is made by itself and then added, so that rounding errors grow with the root of the subtiles.
// weights: [keys, queries] with weights_pitch; rows: [queries, channels] with pitch; to: [keys, channels] with pitch
template <int kVectors>
HWY_NOINLINE void accumulate_channels(const float* HWY_RESTRICT weights, int64_t weights_pitch,
                                      const float* HWY_RESTRICT rows, int64_t pitch, int64_t queries, int64_t keys,
                                      float* HWY_RESTRICT to) {
    const F32 d;
    const int64_t n = lanes();
    for (int64_t j = 0; j < keys; j += kKeyRows, weights += kKeyRows * weights_pitch, to += kKeyRows * pitch) {
        VecF32 acc[kKeyRows][kVectors];
        FOVEAL_UNROLL
        for (int r = 0; r < kKeyRows; ++r) {
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
        }
        const float* row = rows;
        for (int64_t i = 0; i < queries; ++i, row += pitch) {
            VecF32 channels[kVectors];
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) channels[v] = hn::Load(d, row + v * n);
            FOVEAL_UNROLL
            for (int r = 0; r < kKeyRows; ++r) {
                const VecF32 weight = hn::Set(d, weights[r * weights_pitch + i]);
                FOVEAL_UNROLL
                for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(weight, channels[v], acc[r][v]);
            }
        }
        FOVEAL_UNROLL
        for (int r = 0; r < kKeyRows; ++r) {
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                float* const sum = to + r * pitch + v * n;
                hn::Store(hn::Add(hn::Load(d, sum), acc[r][v]), d, sum);
            }
        }
    }
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
