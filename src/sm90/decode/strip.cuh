// What one warp works out of a leaf: its strip, 16 keys of every block, against all columns. Scores are computed
// transposed, keys times columns, as S^T = K Q^T, and so is the output, O^T += V^T P^T: then K and V are what mma takes
// most rows of, 16, and columns, which are few, are its N.
//
// In a thread's registers, of each eight columns: two, 2 t and 2 t + 1 with t = lane % 4, and of each 16 keys (or
// channels) two rows, g and g + 8 with g = lane / 4, of those two columns each.
#pragma once

#include <cstdint>

#include "sm90/decode/column_scores.cuh"
#include "sm90/decode/key_layout.cuh"
#include "sm90/decode/nodes.cuh"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/mma.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/dequantise.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <DecodeConfig kConfig>
class Strip {
    static constexpr DecodeTile kTile = kConfig.tile;
    using Element = Format<kConfig.dtype>;
    static constexpr int32_t kOctets = kTile.octets(), kKsteps = kTile.ksteps();
    static constexpr uint32_t kPanelBytes = kBlockKeys * kTile.panel_row_bytes();  // of a slot
    static constexpr uint32_t kQueryPanelBytes = kOctets * kOctetColumns * kPanelRowBytes;
    static constexpr int32_t kPanelKsteps = kPanelColumns / 16, kSlotKsteps = kTile.slot_ksteps();
    static constexpr int32_t kPanelLoads = kTile.panel_row_bytes() / 32;  // by ldmatrix, of a row

   public:
    // warp: of those that compute.
    __device__ __forceinline__ Strip(int32_t warp, int32_t lane)
        : lane_(lane),
          // ldmatrix.x4: each lane addresses 16 bytes of a row. K: 16 keys by 16 channels, as they lie. V: the same,
          // transposed.
          // In e4m3 either reads 16 keys by 32 channels, and its elements are two channels.
          k_offset_(key_vector_offset<kTile>(warp * kStripKeys + lane % 16, lane / 16)),
          v_offset_(kTile.dequantises() ? k_offset_
                                        : swizzled(warp * kStripKeys + lane / 16 * 8 + lane % 8, lane / 8 % 2)) {}

    // ---- keys in e4m3 -----------------------------------------------------------------------------------------------

    // One of all keys each.
    __device__ __forceinline__ void take_descales(float k, float v) {
        k_descale_[0] = k_descale_[1] = k;
        v_descale_[0] = v_descale_[1] = v_descale_[2] = v_descale_[3] = v;
    }
    // Of each key of the block.
    __device__ __forceinline__ void take_key_descales(const float* of_keys, int32_t warp) {
        of_keys += warp * kStripKeys + lane_ / 4;
        k_descale_[0] = of_keys[0];
        k_descale_[1] = of_keys[8];
    }
    __device__ __forceinline__ void take_value_descales(const float* of_keys, int32_t warp) {
        of_keys += warp * kStripKeys + 2 * (lane_ % 4);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) v_descale_[i] = of_keys[i / 2 * 8 + i % 2];
    }

    // ---- products ---------------------------------------------------------------------------------------------------

    // Before the first block of a piece. queries: where its Q lies in shared memory.
    __device__ __forceinline__ void take_queries(const uint16_t* queries) {
        queries_ = ptx::shared_address(queries);
        if constexpr (kTile.queries_in_registers) {
#pragma unroll
            for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
                for (int32_t kstep = 0; kstep < kKsteps; kstep += 2) {  // four vectors of a row: two ksteps
                    uint32_t pair[4];
                    ptx::ldmatrix_x4(
                        queries_ + static_cast<uint32_t>(kstep / kPanelKsteps) * kQueryPanelBytes +
                            swizzled(octet * kOctetColumns + lane_ % 8, kstep % kPanelKsteps * 2 + lane_ / 8),
                        pair);
#pragma unroll
                    for (int32_t i = 0; i < 4; ++i) q_[octet][kstep + i / 2][i % 2] = pair[i];
                }
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet) {
#pragma unroll
            for (int32_t e = 0; e < 2; ++e) {
                reference[octet][e] = kNoKeys;
                rounded[octet][e] = exact[octet][e] = 0.0f;
            }
#pragma unroll
            for (int32_t i = 0; i < kKsteps; ++i)
#pragma unroll
                for (int32_t x = 0; x < 4; ++x) o[octet][i][x] = 0.0f;
        }
    }

    // Scores, times nothing yet, of the strip's keys of the block whose n-th slot this is. The first one sets s, others
    // add to it.
    __device__ __forceinline__ void multiply_queries(const unsigned char* slot, int32_t n,
                                                     float (&s)[kOctets][4]) const {
        float odd[kOctets][4];  // two sums, so that a product need not wait for the one before it
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t x = 0; x < 4; ++x) {
                if (n == 0) s[octet][x] = 0.0f;
                odd[octet][x] = 0.0f;
            }
        const uint32_t address = ptx::shared_address(slot) + k_offset_;
        uint32_t pair[4];   // of Q
        uint32_t codes[4];  // of keys in e4m3: of two ksteps
#pragma unroll
        for (int32_t i = 0; i < kSlotKsteps; ++i) {
            const int32_t kstep = n * kSlotKsteps + i;
            uint32_t k[4];
            if constexpr (kTile.dequantises()) {
                if (i % 2 == 0) ptx::ldmatrix_x4(at_load(address, i / 2), codes);
#pragma unroll
                for (int32_t half = 0; half < 2; ++half)
                    dequantise<kConfig.dtype>(codes[i % 2 * 2 + half], k_descale_[half], k[half], k[half + 2]);
            } else {
                ptx::ldmatrix_x4(at_load(address, i), k);
            }
            if constexpr (!kTile.queries_in_registers) {
                // 16 columns of a kstep, or 8 of two.
                static_assert(kOctets <= 2);
                if (kOctets == 2 || i % 2 == 0)
                    ptx::ldmatrix_x4(queries_ + static_cast<uint32_t>(kstep / kPanelKsteps) * kQueryPanelBytes +
                                         (kOctets == 2 ? swizzled(lane_ / 16 * 8 + lane_ % 8,
                                                                  kstep % kPanelKsteps * 2 + lane_ / 8 % 2)
                                                       : swizzled(lane_ % 8, kstep % kPanelKsteps * 2 + lane_ / 8)),
                                     pair);
            }
#pragma unroll
            for (int32_t octet = 0; octet < kOctets; ++octet) {
                float(&sum)[4] = i % 2 == 0 ? s[octet] : odd[octet];
                if constexpr (kTile.queries_in_registers) {
                    ptx::mma_m16n8k16<kConfig.dtype>(sum, k, q_[octet][kstep]);
                } else {
                    const int32_t half = kOctets == 2 ? octet : i % 2;
                    const uint32_t q[2] = {pair[2 * half], pair[2 * half + 1]};
                    ptx::mma_m16n8k16<kConfig.dtype>(sum, k, q);
                }
            }
        }
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t x = 0; x < 4; ++x) s[octet][x] += odd[octet][x];
    }

    // From scores to P, as mma's right operand. factor: to base 2.
    __device__ __forceinline__ void exponentiate(const float (&s)[kOctets][4], float factor,
                                                 uint32_t (&p)[kOctets][2]) {
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet) {
            float largest[2] = {fmaxf(s[octet][0], s[octet][2]), fmaxf(s[octet][1], s[octet][3])};
#pragma unroll
            for (int32_t lanes = 4; lanes < 32; lanes *= 2)
#pragma unroll
                for (int32_t e = 0; e < 2; ++e) largest[e] = fmaxf(largest[e], __shfl_xor_sync(~0u, largest[e], lanes));
            raise(octet, fmaxf(reference[octet][0], ceilf(largest[0] * factor)),
                  fmaxf(reference[octet][1], ceilf(largest[1] * factor)));
            float x[4];
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) x[i] = ptx::ex2(fmaf(s[octet][i], factor, -reference[octet][i % 2]));
            exact[octet][0] += x[0] + x[2];
            exact[octet][1] += x[1] + x[3];
            p[octet][0] = ptx::movmatrix_trans(Element::pack(x[0], x[1]));
            p[octet][1] = ptx::movmatrix_trans(Element::pack(x[2], x[3]));
            add_rounded(octet, p[octet]);
        }
    }

    // O^T += V^T P^T, of the channels in the block's n-th slot. Keys of the strip outside [begin, end), counted from
    // its first, that no query sees, may hold anything: their V becomes 0.
    __device__ __forceinline__ void multiply_values(const unsigned char* slot, int32_t n,
                                                    const uint32_t (&p)[kOctets][2], int32_t begin, int32_t end) {
        const auto seen = [begin, end](int32_t key) { return begin <= key && key < end; };
        const int32_t key = 2 * (lane_ % 4);
        const uint32_t near = (seen(key) ? 0xFFFFu : 0u) | (seen(key + 1) ? 0xFFFF0000u : 0u),
                       far = (seen(key + 8) ? 0xFFFFu : 0u) | (seen(key + 9) ? 0xFFFF0000u : 0u);
        const uint32_t address = ptx::shared_address(slot) + v_offset_;
        uint32_t codes[4];  // in e4m3: of 32 channels
#pragma unroll
        for (int32_t i = 0; i < kSlotKsteps; ++i) {
            uint32_t v[4];
            if constexpr (kTile.dequantises()) {
                // Each holds two neighbouring channels of two keys: those become rows g and g + 8 of the product.
                if (i % 2 == 0) ptx::ldmatrix_x4_trans(at_load(address, i / 2), codes);
#pragma unroll
                for (int32_t half = 0; half < 2; ++half)
                    dequantise_columns<kConfig.dtype>(codes[i % 2 * 2 + half] & (half == 0 ? near : far),
                                                      v_descale_[2 * half], v_descale_[2 * half + 1], v[2 * half],
                                                      v[2 * half + 1]);
            } else {
                ptx::ldmatrix_x4_trans(at_load(address, i), v);
                v[0] &= near;
                v[1] &= near;
                v[2] &= far;
                v[3] &= far;
            }
#pragma unroll
            for (int32_t octet = 0; octet < kOctets; ++octet)
                ptx::mma_m16n8k16<kConfig.dtype>(o[octet][n * kSlotKsteps + i], v, p[octet]);
        }
    }

    // At a leaf's end: each thread has the sum of its own keys only.
    __device__ __forceinline__ void sum_exact() {
#pragma unroll
        for (int32_t octet = 0; octet < kOctets; ++octet)
#pragma unroll
            for (int32_t e = 0; e < 2; ++e)
#pragma unroll
                for (int32_t lanes = 4; lanes < 32; lanes *= 2)
                    exact[octet][e] += __shfl_xor_sync(~0u, exact[octet][e], lanes);
    }

    float o[kOctets][kKsteps][4];  // [columns / 8][d / 16]
    // Of keys in e4m3 the channels of rows g and g + 8 are neighbours.
    static __device__ __forceinline__ int32_t channel_of(int32_t row, int32_t half) {
        return kTile.dequantises() ? 2 * row + half : row + 8 * half;
    }

    float reference[kOctets][2], rounded[kOctets][2], exact[kOctets][2];

   private:
    // 32 bytes to the right, or in the next panel. The swizzle of a row reaches bits 4 to 6 of an address alone.
    static __device__ __forceinline__ uint32_t at_load(uint32_t address, int32_t n) {
        return (address ^ static_cast<uint32_t>(n % kPanelLoads * 32)) +
               static_cast<uint32_t>(n / kPanelLoads) * kPanelBytes;
    }

    // To new references, which are no smaller.
    __device__ __forceinline__ void raise(int32_t octet, float first, float second) {
        if (!__any_sync(~0u, first != reference[octet][0] || second != reference[octet][1])) return;
        const float factors[2] = {ptx::ex2(reference[octet][0] - first), ptx::ex2(reference[octet][1] - second)};
        reference[octet][0] = first;
        reference[octet][1] = second;
#pragma unroll
        for (int32_t e = 0; e < 2; ++e) {
            rounded[octet][e] *= factors[e];
            exact[octet][e] *= factors[e];
        }
#pragma unroll
        for (int32_t i = 0; i < kKsteps; ++i)
#pragma unroll
            for (int32_t x = 0; x < 4; ++x) o[octet][i][x] *= factors[x % 2];
    }

    // The sum over the strip's keys, by a product with ones: every row of it is that sum.
    __device__ __forceinline__ void add_rounded(int32_t octet, const uint32_t (&p)[2]) {
        constexpr uint32_t kOnes = Element::kOneBits * 0x10001u;
        constexpr uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
        float sum[4] = {rounded[octet][0], rounded[octet][1], 0.0f, 0.0f};
        ptx::mma_m16n8k16<kConfig.dtype>(sum, ones, p);
        rounded[octet][0] = sum[0];
        rounded[octet][1] = sum[1];
    }

    const int32_t lane_;
    const uint32_t k_offset_, v_offset_;
    uint32_t queries_ = 0;
    float k_descale_[2], v_descale_[4];  // of the thread's keys: g, g + 8; 2 t, 2 t + 1, 2 t + 8, 2 t + 9
    uint32_t q_[kTile.queries_in_registers ? kOctets : 1][kTile.queries_in_registers ? kKsteps : 1][2];
};

}  // namespace foveal::sm90
