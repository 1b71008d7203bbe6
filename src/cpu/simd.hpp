// The vector types that the per-target headers of this directory share. Each of these is read once for every SIMD
// target that Highway compiles for: include them after <hwy/foreach_target.h>.
//
// Speed is tuned for AVX-512 and AVX2; SSE4 and HWY_SCALAR are there to be right on every other x86 CPU, NEON on Arm.
// Which targets are left out: cpu/simd_targets.hpp.
#if defined(FOVEAL_CPU_SIMD_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SIMD_HPP
#undef FOVEAL_CPU_SIMD_HPP
#else
#define FOVEAL_CPU_SIMD_HPP
#endif

#include <hwy/highway.h>

#include <cstdint>

// AVX-512's products of bf16 (VDPBF16PS), two at a time, are no part of any target of Highway 1.0.3. What stands
// between FOVEAL_BEFORE_PAIRS() and FOVEAL_AFTER_PAIRS() may use them, and does so only where has_bf16_pairs();
// compilers make no such instruction of other code.
#undef FOVEAL_TARGET_HAS_PAIRS
#undef FOVEAL_BEFORE_PAIRS
#undef FOVEAL_AFTER_PAIRS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define FOVEAL_TARGET_HAS_PAIRS 1
#define FOVEAL_BEFORE_PAIRS() HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
#define FOVEAL_AFTER_PAIRS() HWY_POP_ATTRIBUTES
#else
#define FOVEAL_TARGET_HAS_PAIRS 0
#define FOVEAL_BEFORE_PAIRS() HWY_BEFORE_NAMESPACE()
#define FOVEAL_AFTER_PAIRS() HWY_AFTER_NAMESPACE()
#endif

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using VecF32 = hn::Vec<F32>;
using VecU32 = hn::Vec<U32>;
using MaskF32 = hn::Mask<F32>;

// Are there products of bf16, summed in f32?
inline bool has_bf16_pairs() {
#if FOVEAL_TARGET_HAS_PAIRS
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return false;
#endif
}

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(F32())); }

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
