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

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using VecF32 = hn::Vec<F32>;
using VecU32 = hn::Vec<U32>;
using MaskF32 = hn::Mask<F32>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(F32())); }

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
