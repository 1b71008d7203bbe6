// The two matrix products of a few queries with rows of K and V as they lie in the caller's memory, each read once:
// vectors run along a row, which is converted in registers.
#if defined(FOVEAL_CPU_ROW_KERNEL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_ROW_KERNEL_HPP
#undef FOVEAL_CPU_ROW_KERNEL_HPP
#else
#define FOVEAL_CPU_ROW_KERNEL_HPP
#endif

#include <algorithm>
#include <cstddef>

#include "cpu/ask_ahead.hpp"
#include "cpu/convert.hpp"
#include "cpu/simd.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Accumulators of a register block: half of the registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kRowAccumulators = 16;
#else
inline constexpr int kRowAccumulators = 8;
#endif

// Keys that are multiplied with the same queries at a time.
inline constexpr int kKeysATime = 4;

// As in microkernel.hpp: GCC 12.2 keeps the accumulators in memory unless told to unroll the loops over them.
#define FOVEAL_UNROLL HWY_PRAGMA(GCC unroll 8)

// Rows that are soon to be read.
struct RowsAhead {
    const std::byte* const* rows;
    int32_t count;
    int64_t row_bytes;

    HWY_INLINE void ask_for(int32_t row) const {
        if (row < count) ask_ahead(rows[row], row_bytes);
    }
};

// A whole vector of a row, or the last elements of one, behind which nothing may be touched.
template <class Format>
struct WholeVector {
    HWY_INLINE VecF32 operator()(const typename Format::Storage* from) const { return Format::load(from); }
};
template <class Format>
struct RowEnd {
    int64_t size;
    HWY_INLINE VecF32 operator()(const typename Format::Storage* from) const {
        HWY_ALIGN typename Format::Storage end[hn::MaxLanes(F32())] = {};
        std::copy_n(from, std::min<int64_t>(size, hn::MaxLanes(F32())), end);
        return Format::load(end);
    }
};

// ---- scores ---------------------------------------------------------------------------------------------------------

// The sums of the lanes of four vectors.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void store_four_sums(const VecF32* v, float* to) {
    for (int i = 0; i < 4; ++i) to[i] = hn::GetLane(v[i]);
}
#else
template <class D>
HWY_INLINE hn::Vec<hn::Full128<float>> sum_of_blocks(D d, hn::Vec<D> v) {
    if constexpr (hn::MaxLanes(d) <= 4) {
        return v;
    } else {
        const hn::Half<D> half;
        return sum_of_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    }
}
HWY_INLINE void store_four_sums(const VecF32* v, float* to) {
    const F32 d;
    const VecF32 even = hn::Add(hn::InterleaveLower(d, v[0], v[2]), hn::InterleaveUpper(d, v[0], v[2]));
    const VecF32 odd = hn::Add(hn::InterleaveLower(d, v[1], v[3]), hn::InterleaveUpper(d, v[1], v[3]));
    const VecF32 sums = hn::Add(hn::InterleaveLower(d, even, odd), hn::InterleaveUpper(d, even, odd));
    hn::StoreU(sum_of_blocks(d, sums), hn::Full128<float>(), to);
}
#endif

// acc[i][j] += q_i * k_j, one vector of each.
template <int kQueries, class Load, class Storage>
HWY_INLINE void multiply_keys(Load load, const float* q, int64_t q_pitch, const Storage* const* k, int64_t at,
                              VecF32 (&acc)[kQueries][kKeysATime]) {
    VecF32 keys[kKeysATime];
    FOVEAL_UNROLL
    for (int j = 0; j < kKeysATime; ++j) keys[j] = load(k[j] + at);
    FOVEAL_UNROLL
    for (int i = 0; i < kQueries; ++i) {
        const VecF32 query = hn::Load(F32(), q + i * q_pitch + at);
        FOVEAL_UNROLL
        for (int j = 0; j < kKeysATime; ++j) acc[i][j] = hn::MulAdd(query, keys[j], acc[i][j]);
    }
}

// s[i, j] = q_i^T k_j for kQueries queries; keys is a multiple of kKeysATime.
// q: [kQueries, d] with q_pitch, zeros up to a whole vector; k: [keys] rows; s: [kQueries, keys] with s_pitch
template <class Format, int kQueries>
HWY_NOINLINE void score_rows(const float* q, int64_t q_pitch, const std::byte* const* k, int64_t head_dim, int32_t keys,
                             float* s, int64_t s_pitch, RowsAhead ahead) {
    using Storage = typename Format::Storage;
    const int64_t whole = head_dim - head_dim % lanes();
    for (int32_t first = 0; first < keys; first += kKeysATime) {
        const Storage* rows[kKeysATime];
        for (int j = 0; j < kKeysATime; ++j) {
            rows[j] = reinterpret_cast<const Storage*>(k[first + j]);
            ahead.ask_for(first + j);
        }
        VecF32 acc[kQueries][kKeysATime];
        FOVEAL_UNROLL
        for (int i = 0; i < kQueries; ++i) {
            FOVEAL_UNROLL
            for (int j = 0; j < kKeysATime; ++j) acc[i][j] = hn::Zero(F32());
        }
        for (int64_t at = 0; at < whole; at += lanes()) multiply_keys(WholeVector<Format>(), q, q_pitch, rows, at, acc);
        if (whole < head_dim) multiply_keys(RowEnd<Format>{head_dim - whole}, q, q_pitch, rows, whole, acc);
        FOVEAL_UNROLL
        for (int i = 0; i < kQueries; ++i) store_four_sums(acc[i], s + i * s_pitch + first);
    }
}

// ---- values ---------------------------------------------------------------------------------------------------------

// o[i, 0 .. kVectors) = o[i, ..] * rescale[i] + sum over keys of p[i, j] * v[j, ..], kVectors vectors from column `at`.
template <int kQueries, int kVectors, class Load, class Storage>
HWY_INLINE void add_columns(Load load, const float* p, int64_t p_pitch, const std::byte* const* v, int64_t at,
                            int32_t keys, const float* rescale, float* o, int64_t o_pitch, RowsAhead ahead,
                            const Storage*) {
    const F32 d;
    VecF32 acc[kQueries][kVectors];
    FOVEAL_UNROLL
    for (int i = 0; i < kQueries; ++i) {
        FOVEAL_UNROLL
        for (int c = 0; c < kVectors; ++c)
            acc[i][c] = hn::Mul(hn::Load(d, o + i * o_pitch + at + c * lanes()), hn::Set(d, rescale[i]));
    }
    for (int32_t j = 0; j < keys; ++j) {
        const Storage* const row = reinterpret_cast<const Storage*>(v[j]) + at;
        ahead.ask_for(j);
        VecF32 values[kVectors];
        FOVEAL_UNROLL
        for (int c = 0; c < kVectors; ++c) values[c] = load(row + c * lanes());
        FOVEAL_UNROLL
        for (int i = 0; i < kQueries; ++i) {
            const VecF32 weight = hn::Set(d, p[i * p_pitch + j]);
            FOVEAL_UNROLL
            for (int c = 0; c < kVectors; ++c) acc[i][c] = hn::MulAdd(weight, values[c], acc[i][c]);
        }
    }
    FOVEAL_UNROLL
    for (int i = 0; i < kQueries; ++i) {
        FOVEAL_UNROLL
        for (int c = 0; c < kVectors; ++c) hn::Store(acc[i][c], d, o + i * o_pitch + at + c * lanes());
    }
}

// o = o * rescale + p v for kQueries queries, one key after the other.
// p: [kQueries, keys] with p_pitch; v: [keys] rows; o: [kQueries, d_v up to a whole vector] with o_pitch
template <class Format, int kQueries>
HWY_NOINLINE void add_value_rows(const float* p, int64_t p_pitch, const std::byte* const* v, int64_t head_dim_v,
                                 int32_t keys, const float* rescale, float* o, int64_t o_pitch, RowsAhead ahead) {
    using Storage = typename Format::Storage;
    constexpr int kVectors = std::min(kRowAccumulators / kQueries, 8);
    constexpr Storage* kStorage = nullptr;
    constexpr RowsAhead kNone{nullptr, 0, 0};
    const WholeVector<Format> load;
    const int64_t whole = head_dim_v - head_dim_v % lanes();
    int64_t at = 0;
    for (; at + kVectors * lanes() <= whole; at += kVectors * lanes(), ahead = kNone)
        add_columns<kQueries, kVectors>(load, p, p_pitch, v, at, keys, rescale, o, o_pitch, ahead, kStorage);
    for (; at + kVectors / 2 * lanes() <= whole; at += kVectors / 2 * lanes(), ahead = kNone)
        add_columns<kQueries, kVectors / 2>(load, p, p_pitch, v, at, keys, rescale, o, o_pitch, ahead, kStorage);
    for (; at < whole; at += lanes(), ahead = kNone)
        add_columns<kQueries, 1>(load, p, p_pitch, v, at, keys, rescale, o, o_pitch, ahead, kStorage);
    if (at == head_dim_v) return;
    const RowEnd<Format> load_end{head_dim_v - at};
    add_columns<kQueries, 1>(load_end, p, p_pitch, v, at, keys, rescale, o, o_pitch, ahead, kStorage);
}

#undef FOVEAL_UNROLL

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
