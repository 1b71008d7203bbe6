// Between rows of floats and the tile's layout, in which the queries lie along the vector lanes.
#if defined(FOVEAL_CPU_TRANSPOSE_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_TRANSPOSE_HPP
#undef FOVEAL_CPU_TRANSPOSE_HPP
#else
#define FOVEAL_CPU_TRANSPOSE_HPP
#endif

#include "cpu/simd.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Columns are transposed four at a time: rows, and their pitch, are padded to a multiple of it.
inline constexpr int64_t kTransposeColumns = 4;

struct FourColumns {
    VecF32 column[kTransposeColumns];

    // Written out, because GCC 12 compiles an implicit one without the target's instructions, for NEON an error.
    HWY_INLINE FourColumns() {}
};

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE FourColumns load_columns(const float* rows, int64_t) {
    FourColumns c;
    for (int i = 0; i < kTransposeColumns; ++i) c.column[i] = hn::Load(F32(), rows + i);
    return c;
}
HWY_INLINE void store_columns(const FourColumns& c, float* rows, int64_t) {
    for (int i = 0; i < kTransposeColumns; ++i) hn::Store(c.column[i], F32(), rows + i);
}
#else
// rows: [lanes(), 4] at distance pitch.
HWY_INLINE FourColumns load_columns(const float* rows, int64_t pitch) {
    HWY_ALIGN float block[hn::MaxLanes(F32()) * kTransposeColumns];
    const hn::Full128<float> d4;
    for (int64_t lane = 0; lane < lanes(); ++lane) {
        hn::Store(hn::LoadU(d4, rows + lane * pitch), d4, block + lane * kTransposeColumns);
    }
    FourColumns c;
    hn::LoadInterleaved4(F32(), block, c.column[0], c.column[1], c.column[2], c.column[3]);
    return c;
}
HWY_INLINE void store_columns(const FourColumns& c, float* rows, int64_t pitch) {
    HWY_ALIGN float block[hn::MaxLanes(F32()) * kTransposeColumns];
    hn::StoreInterleaved4(c.column[0], c.column[1], c.column[2], c.column[3], F32(), block);
    const hn::Full128<float> d4;
    for (int64_t lane = 0; lane < lanes(); ++lane) {
        hn::StoreU(hn::Load(d4, block + lane * kTransposeColumns), d4, rows + lane * pitch);
    }
}
#endif

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
