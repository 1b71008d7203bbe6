// Which of Highway's SIMD targets are not compiled. Include it before any header of Highway.
//
// HWY_SSSE3: no CPU with SSSE3 but without SSE4 is worth its compile time.
//
// HWY_SVE*, HWY_RVV: their vectors have no size, even where their length is known (HWY_SVE_256, HWY_SVE2_128), so that
// no array or class can hold them, as those of the matrix products do. Arm CPUs with SVE also have NEON, and Neoverse
// V1, V2 and N2 multiply as many floats a cycle with it: four vectors of 128 bits to V1's two of 256, and SVE vectors
// of 128 bits in V2 and N2.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
