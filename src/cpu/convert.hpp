// Rows of f32, bf16, f16 or e4m3 in the caller's memory to rows of float and back, rounding to nearest, ties to even.
//
// Highway 1.0.3 truncates to bf16 on every target, and on targets without F16C truncates to f16 and misreads its
// infinities; so what rounds here is written out.
#if defined(FOVEAL_CPU_CONVERT_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_CONVERT_HPP
#undef FOVEAL_CPU_CONVERT_HPP
#else
#define FOVEAL_CPU_CONVERT_HPP
#endif

#include <algorithm>

#include "cpu/simd.hpp"
#include "problem/forward.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// A format's storage, and one vector from and to it. ForwardPointers need no alignment.
struct F32Format {
    using Storage = float;
    static HWY_INLINE VecF32 load(const float* from) { return hn::LoadU(F32(), from); }
    static HWY_INLINE void store(VecF32 v, float* to) { hn::StoreU(v, F32(), to); }
};

HWY_INLINE VecU32 load_halves(const uint16_t* from) {
    const hn::Rebind<uint16_t, F32> d16;
    return hn::PromoteTo(U32(), hn::LoadU(d16, from));
}

// bits: at most 0xFFFF.
HWY_INLINE void store_halves(VecU32 bits, uint16_t* to) {
    const hn::Rebind<uint16_t, F32> d16;
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(I32(), bits)), d16, to);
}

struct BF16Format {
    using Storage = uint16_t;
    static HWY_INLINE VecF32 load(const uint16_t* from) {
        return hn::BitCast(F32(), hn::ShiftLeft<16>(load_halves(from)));
    }
    static HWY_INLINE void store(VecF32 v, uint16_t* to) {
        const U32 d;
        const VecU32 bits = hn::BitCast(d, v);
        const VecU32 odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
        const VecU32 rounded = hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7FFF)));
        const VecU32 quiet_nan = hn::Or(bits, hn::Set(d, 0x400000));
        store_halves(hn::ShiftRight<16>(hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), quiet_nan, rounded)), to);
    }
};

#if HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM_A64
struct F16Format {
    using Storage = uint16_t;
    static HWY_INLINE VecF32 load(const uint16_t* from) {
        const hn::Rebind<uint16_t, F32> d16;
        const hn::Rebind<hwy::float16_t, F32> df16;
        return hn::PromoteTo(F32(), hn::BitCast(df16, hn::LoadU(d16, from)));
    }
    static HWY_INLINE void store(VecF32 v, uint16_t* to) {
        const hn::Rebind<uint16_t, F32> d16;
        const hn::Rebind<hwy::float16_t, F32> df16;
        hn::StoreU(hn::BitCast(d16, hn::DemoteTo(df16, v)), d16, to);
    }
};
#else
// After Marat Dukhan's FP16 library: powers of two move the exponent, the float adder rounds.
struct F16Format {
    using Storage = uint16_t;
    static HWY_INLINE VecF32 load(const uint16_t* from) {
        const U32 d;
        const VecU32 half = load_halves(from);
        const VecU32 sign = hn::ShiftLeft<16>(hn::And(half, hn::Set(d, 0x8000)));
        const VecU32 magnitude = hn::And(half, hn::Set(d, 0x7FFF));
        const VecF32 small = hn::BitCast(F32(), hn::ShiftLeft<13>(magnitude));
        const VecU32 finite = hn::BitCast(d, hn::Mul(small, hn::Set(F32(), 0x1p112f)));
        const VecU32 special = hn::Or(hn::ShiftLeft<13>(magnitude), hn::Set(d, 0x7F800000));
        const auto is_special = hn::Gt(hn::BitCast(I32(), magnitude), hn::Set(I32(), 0x7BFF));
        return hn::BitCast(F32(), hn::Or(sign, hn::IfThenElse(hn::RebindMask(d, is_special), special, finite)));
    }
    static HWY_INLINE void store(VecF32 v, uint16_t* to) {
        const U32 d;
        const VecU32 bits = hn::BitCast(d, v);
        const VecU32 sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 0x8000));
        // Too large becomes inf and stays it; else the product is |v| again.
        const VecF32 magnitude = hn::Mul(hn::Mul(hn::Abs(v), hn::Set(F32(), 0x1p112f)), hn::Set(F32(), 0x1p-110f));
        // 2^15 times the power of two at or below |v|, at least that of the smallest normal f16: adding it rounds off
        // the 13 mantissa bits that f16 lacks, or more where the result is subnormal.
        const VecU32 exponent = hn::And(bits, hn::Set(d, 0x7F800000));
        const VecU32 bias = hn::Add(hn::Max(exponent, hn::Set(d, 0x38800000)), hn::Set(d, 0x07800000));
        const VecU32 sum = hn::BitCast(d, hn::Add(hn::BitCast(F32(), bias), magnitude));
        const VecU32 half =
            hn::Add(hn::And(hn::ShiftRight<13>(sum), hn::Set(d, 0x7C00)), hn::And(sum, hn::Set(d, 0x0FFF)));
        const VecU32 finite_or_inf = hn::Or(sign, half);
        const VecU32 nan = hn::Or(sign, hn::Set(d, 0x7E00));
        store_halves(hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), nan, finite_or_inf), to);
    }
};
#endif

// 448 is the largest number: what is larger becomes it, infinities too. No step reads or makes a subnormal float.
struct E4M3Format {
    using Storage = uint8_t;
    static HWY_INLINE VecF32 load(const uint8_t* from) {
        const U32 d;
        const VecU32 code = hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, F32>(), from));
        const VecU32 magnitude = hn::And(code, hn::Set(d, 0x7F));
        const VecU32 sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(d, 0x80)));
        const VecU32 shifted = hn::ShiftLeft<20>(magnitude);
        // 2^-6 more than m / 8 * 2^-6, which a subnormal number is.
        const VecF32 above = hn::BitCast(F32(), hn::Add(shifted, hn::Set(d, 121U << 23)));
        const VecU32 subnormal = hn::BitCast(d, hn::Sub(above, hn::Set(F32(), 0x1p-6f)));
        const VecU32 normal = hn::Add(shifted, hn::Set(d, 120U << 23));
        const VecU32 finite = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 8)), subnormal, normal);
        const VecU32 number = hn::IfThenElse(hn::Eq(magnitude, hn::Set(d, 0x7F)), hn::Set(d, 0x7FC00000), finite);
        return hn::BitCast(F32(), hn::Or(sign, number));
    }
    static HWY_INLINE void store(VecF32 v, uint8_t* to) {
        const U32 d;
        const VecU32 bits = hn::BitCast(d, v);
        const VecF32 magnitude = hn::Min(hn::Abs(v), hn::Set(F32(), 448.0f));
        // 2^20 times the power of two at or below |v|, at least that of the smallest normal number: of the sum, the
        // last bits are the mantissa, rounded, with its leading one.
        const VecU32 exponent = hn::And(hn::BitCast(d, magnitude), hn::Set(d, 0x7F800000));
        const VecU32 bias = hn::Add(hn::Max(exponent, hn::Set(d, 121U << 23)), hn::Set(d, 20U << 23));
        const VecU32 sum = hn::BitCast(d, hn::Add(hn::BitCast(F32(), bias), magnitude));
        const VecU32 exponents = hn::ShiftLeft<3>(hn::Sub(hn::ShiftRight<23>(sum), hn::Set(d, 121 + 20)));
        const VecU32 number = hn::Add(exponents, hn::And(sum, hn::Set(d, 0x1F)));
        const VecU32 sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(d, 0x80));
        const VecU32 code = hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), hn::Set(d, 0x7F), number);
        const hn::Rebind<uint8_t, F32> d8;
        hn::StoreU(hn::DemoteTo(d8, hn::BitCast(I32(), hn::Or(sign, code))), d8, to);
    }
};

// to[0 .. size) = from[0 .. size), and zeros up to a multiple of lanes(): to has that much room.
template <class Format>
void load_row(const void* from, int64_t size, float* to) {
    using Storage = typename Format::Storage;
    const auto* row = static_cast<const Storage*>(from);
    const int64_t n = lanes();
    int64_t i = 0;
    for (; i + n <= size; i += n) hn::Store(Format::load(row + i), F32(), to + i);
    if (i >= size) return;
    HWY_ALIGN Storage tail[hn::MaxLanes(F32())] = {};
    std::copy(row + i, row + size, tail);
    hn::Store(Format::load(tail), F32(), to + i);
}

// to[0 .. size) = from[0 .. size), rounded; from is readable up to a multiple of lanes().
template <class Format>
void store_row(const float* from, int64_t size, void* to) {
    using Storage = typename Format::Storage;
    auto* row = static_cast<Storage*>(to);
    const int64_t n = lanes();
    int64_t i = 0;
    for (; i + n <= size; i += n) Format::store(hn::Load(F32(), from + i), row + i);
    if (i >= size) return;
    HWY_ALIGN Storage tail[hn::MaxLanes(F32())];
    Format::store(hn::Load(F32(), from + i), tail);
    std::copy(tail, tail + (size - i), row + i);
}

using LoadRow = void (*)(const void* from, int64_t size, float* to);
using StoreRow = void (*)(const float* from, int64_t size, void* to);

inline LoadRow row_loader(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return load_row<F32Format>;
        case DType::bf16:
            return load_row<BF16Format>;
        case DType::f16:
            return load_row<F16Format>;
        case DType::e4m3:
            return load_row<E4M3Format>;
        default:  // validate() lets no other through
            break;
    }
    return nullptr;
}

inline StoreRow row_storer(DType dtype) {
    switch (dtype) {
        case DType::f32:
            return store_row<F32Format>;
        case DType::bf16:
            return store_row<BF16Format>;
        case DType::f16:
            return store_row<F16Format>;
        case DType::e4m3:
            return store_row<E4M3Format>;
        default:  // validate() lets no other through
            break;
    }
    return nullptr;
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
