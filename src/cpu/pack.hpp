// Keys and values of a block as floats, in the layout that the two products read.
#if defined(FOVEAL_CPU_PACK_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_PACK_HPP
#undef FOVEAL_CPU_PACK_HPP
#else
#define FOVEAL_CPU_PACK_HPP
#endif

#include <algorithm>

#include "cpu/convert.hpp"
#include "cpu/key_rows.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "problem/mask.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Rows of k or v from `first` on, up to kBlockKeys.
struct BlockOfRows {
    int32_t first;
    int32_t len_k;
    Range seen;  // those that some query of the sequence sees
    int32_t count() const { return std::min(kBlockKeys, len_k - first); }
    // Those of them that are packed: the others are zeros.
    Range filled() const {
        const int32_t begin = std::clamp(seen.begin - first, 0, count());
        return {begin, std::clamp(seen.end - first, begin, count())};
    }
};

// Rows beyond the sequence's end, up to a whole register block, are zeros, and so are those that no query of the
// sequence sees: they may hold anything, and must not reach a result (contract 1.6).
// from: [len_k, columns], KeyRows or DequantisedRows; to: [kBlockKeys, columns] with pitch_of(columns)
template <class Rows>
void pack_rows(LoadRow load_row, const Rows& from, int64_t columns, const BlockOfRows& rows, float* to) {
    const int64_t pitch = pitch_of(columns);
    const auto [begin, end] = rows.filled();
    std::fill(to, to + begin * pitch, 0.0f);
    for (int32_t j = begin; j < end; ++j) load_row(from.row(rows.first + j), columns, to + j * pitch);
    std::fill(to + end * pitch, to + round_up(rows.count(), kRows) * pitch, 0.0f);
}

// Is no element of the first `rows` packed rows NaN or infinite?
inline HWY_NOINLINE bool all_finite(const float* packed, int64_t rows, int64_t columns) {
    const F32 d;
    VecF32 sum = hn::Zero(d);
    for (int64_t j = 0; j < rows; ++j, packed += pitch_of(columns))
        for (int64_t c = 0; c < columns; c += lanes()) sum = hn::MulAdd(hn::Load(d, packed + c), hn::Zero(d), sum);
    return hn::AllFalse(d, hn::IsNaN(sum));
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
