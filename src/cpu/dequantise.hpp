// Rows in e4m3 to rows of another type: each element times a factor in fp32, rounded once (contract 1.14).
//
// A row of K or V is taken to the type that is computed in before anything else sees it, so that the result is, bit for
// bit, that of a cache in that type.
#if defined(FOVEAL_CPU_DEQUANTISE_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_DEQUANTISE_HPP
#undef FOVEAL_CPU_DEQUANTISE_HPP
#else
#define FOVEAL_CPU_DEQUANTISE_HPP
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/convert.hpp"
#include "cpu/key_rows.hpp"
#include "cpu/simd.hpp"
#include "problem/dtype.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// A row times a factor: size codes, to Format's elements; there is room for whole vectors of floats.
template <class Format>
void scale_row(const uint8_t* from, float factor, int64_t size, void* to) {
    auto* const row = static_cast<typename Format::Storage*>(to);
    const VecF32 factors = hn::Set(F32(), factor);
    const int64_t n = lanes();
    int64_t i = 0;
    for (; i + n <= size; i += n) Format::store(hn::Mul(E4M3Format::load(from + i), factors), row + i);
    if (i >= size) return;
    HWY_ALIGN uint8_t tail[hn::MaxLanes(F32())] = {};
    std::copy(from + i, from + size, tail);
    Format::store(hn::Mul(E4M3Format::load(tail), factors), row + i);
}

using ScaleRow = void (*)(const uint8_t* from, float factor, int64_t size, void* to);

// to: f32, bf16 or f16
inline ScaleRow row_scaler(DType to) {
    return to == DType::f32 ? scale_row<F32Format> : to == DType::bf16 ? scale_row<BF16Format> : scale_row<F16Format>;
}

// For one factor, or one for each key. Of one factor a type of 16 bits has few results, so they are looked up.
class Dequantiser {
   public:
    // to: f32, bf16 or f16. factors: f32 of each key; first is null: `factor` is all keys'.
    Dequantiser(DType to, float factor, const KeyRows& factors)
        : scale_row_(row_scaler(to)),
          looks_up_(to != DType::f32 && factors.first == nullptr),
          factor_(factor),
          factors_(factors) {
        if (!looks_up_) return;
        uint8_t codes[kMagnitudes];
        for (int i = 0; i < kMagnitudes; ++i) codes[i] = static_cast<uint8_t>(i);
        scale_row_(codes, factor, kMagnitudes, results_);
        for (int i = 0; i < kMagnitudes; ++i) {
            lower_[i] = static_cast<uint8_t>(results_[i]);
            upper_[i] = static_cast<uint8_t>(results_[i] >> 8);
        }
    }

    // from: this key's [size]; to: [size], aligned to a vector, with room for whole vectors of floats
    void row(const std::byte* from, int32_t key, int64_t size, std::byte* to) const {
        const auto* const codes = reinterpret_cast<const uint8_t*>(from);
        if (looks_up_)
            look_up_row(codes, size, reinterpret_cast<uint16_t*>(to));
        else
            scale_row_(codes, factor_of(key), size, to);
    }

   private:
    static constexpr int kMagnitudes = 128;
    static constexpr uint16_t kSign = 0x80;

    float factor_of(int32_t key) const {
        if (factors_.first == nullptr) return factor_;
        float factor;
        std::memcpy(&factor, factors_.row(key), sizeof factor);
        return factor;
    }

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
    // Stores are whole vectors: masked ones take AVX-512 CPUs of today a multiple of the time.
    HWY_INLINE void look_up_row(const uint8_t* from, int64_t size, uint16_t* to) const {
        constexpr int64_t kAtATime = 32;
        const auto table = [this](int n) { return _mm512_load_si512(results_ + n * kAtATime); };
        const __m512i a = table(0), b = table(1), c = table(2), d = table(3);
        const auto look_up = [&](__m256i bytes) {
            const __m512i codes = _mm512_cvtepu8_epi16(bytes);
            const __m512i small = _mm512_permutex2var_epi16(a, codes, b);
            const __m512i large = _mm512_permutex2var_epi16(c, codes, d);
            const __mmask32 is_large = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
            const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(kSign)), 8);
            return _mm512_xor_si512(_mm512_mask_blend_epi16(is_large, small, large), sign);
        };
        int64_t i = 0;
        for (; i + kAtATime <= size; i += kAtATime)
            _mm512_store_si512(to + i, look_up(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
        if (i == size) return;
        const __mmask32 there = (__mmask32{1} << (size - i)) - 1;
        _mm512_store_si512(to + i, look_up(_mm256_maskz_loadu_epi8(there, from + i)));
    }
#else
    HWY_INLINE void look_up_row(const uint8_t* from, int64_t size, uint16_t* to) const {
        int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
        const hn::ScalableTag<uint8_t> d;
        const auto n = static_cast<int64_t>(hn::Lanes(d));
        for (; i + n <= size; i += n) look_up(from + i, to + i);
#endif
        for (; i < size; ++i) {
            const uint16_t code = from[i];
            to[i] = static_cast<uint16_t>(results_[code & ~kSign] ^ (code & kSign) << 8);
        }
    }

#if HWY_TARGET != HWY_SCALAR
    // Each step knows the results of sixteen magnitudes, and gives 0 for all others.
    HWY_INLINE void look_up(const uint8_t* from, uint16_t* to) const {
        const hn::ScalableTag<uint8_t> d;
        const hn::Repartition<uint16_t, decltype(d)> d16;
        const auto codes = hn::LoadU(d, from);
        const auto magnitude = hn::And(codes, hn::Set(d, 0x7F));
        auto lower = hn::Zero(d), upper = hn::And(codes, hn::Set(d, kSign));
        for (int first = 0; first < kMagnitudes; first += 16) {
            // 16 and more become 0x80 and more, for which a lookup gives 0; less than 16 stays what it is.
            const auto above = hn::Xor(magnitude, hn::Set(d, static_cast<uint8_t>(first)));
            const auto index = hn::And(hn::SaturatedAdd(above, hn::Set(d, 0x70)), hn::Set(d, 0x8F));
            lower = hn::Or(lower, hn::TableLookupBytesOr0(hn::LoadDup128(d, lower_ + first), index));
            upper = hn::Xor(upper, hn::TableLookupBytesOr0(hn::LoadDup128(d, upper_ + first), index));
        }
        const auto even = hn::BitCast(d16, hn::InterleaveLower(d, lower, upper));
        const auto odd = hn::BitCast(d16, hn::InterleaveUpper(d, lower, upper));
        if constexpr (hn::MaxLanes(d) <= 16) {
            hn::StoreU(even, d16, to);
            hn::StoreU(odd, d16, to + hn::MaxLanes(d16));
        } else {  // both are of 128-bit blocks
            hn::StoreU(hn::ConcatLowerLower(d16, odd, even), d16, to);
            hn::StoreU(hn::ConcatUpperUpper(d16, odd, even), d16, to + hn::MaxLanes(d16));
        }
    }
#endif
#endif

    ScaleRow scale_row_;
    bool looks_up_;
    float factor_;
    KeyRows factors_;
    alignas(64) uint16_t results_[kMagnitudes] = {};  // of positive codes
    alignas(64) uint8_t lower_[kMagnitudes] = {};     // their bytes
    alignas(64) uint8_t upper_[kMagnitudes] = {};
};

// The rows of a head in e4m3 as packing reads them. A row stays until the next but one is asked for.
class DequantisedRows {
   public:
    // two_rows: aligned to a vector, with room for two rows of whole vectors of floats, pitch_bytes apart
    DequantisedRows(const KeyRows& rows, const Dequantiser& dequantiser, int64_t channels, std::byte* two_rows,
                    int64_t pitch_bytes)
        : rows_(rows), dequantiser_(dequantiser), channels_(channels), two_rows_(two_rows), pitch_bytes_(pitch_bytes) {}

    const std::byte* row(int32_t key) const {
        std::byte* const to = two_rows_ + key % 2 * pitch_bytes_;
        dequantiser_.row(rows_.row(key), key, channels_, to);
        return to;
    }

   private:
    const KeyRows& rows_;
    const Dequantiser& dequantiser_;
    int64_t channels_;
    std::byte* two_rows_;
    int64_t pitch_bytes_;
};

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
