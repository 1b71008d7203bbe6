// The two matrix products of one warpgroup: S = Q K^T and O += P V, from tiles that the copy engine has laid out.
//
// A tile in shared memory is a row of panels, each 64 columns (128 bytes) wide with the 128-byte swizzle, 1024-byte
// aligned. Descriptor: PTX ISA, "Matrix Descriptor Format"
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout-matrix-descriptor
#pragma once

#include "sm90/forward/tiles.hpp"
#include "sm90/ptx/wgmma.cuh"

namespace foveal::sm90 {

// The same value in all lanes, and known to be: the compiler keeps what follows from it in uniform registers.
__device__ __forceinline__ uint32_t uniform(uint32_t x) { return __shfl_sync(~0u, x, 0); }
__device__ __forceinline__ int32_t uniform(int32_t x) { return __shfl_sync(~0u, x, 0); }

// Addresses in a descriptor count 16 bytes.
inline constexpr uint32_t kDescriptorUnit = 16;
inline constexpr uint32_t kSwizzleAtomBytes = 1024;  // 8 rows of 128 bytes

// Byte offset of 16-byte chunk `chunk` of row `row` in a panel of the 128-byte swizzle.
__device__ __forceinline__ uint32_t swizzled(int32_t row, int32_t chunk) {
    return static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4));
}

// Low word of a descriptor: start address, and the leading dimension's byte offset (distance between panels; only read
// for MN-major operands).
__device__ __forceinline__ uint32_t descriptor_low(const void* tile, uint32_t panel_bytes) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
    return uniform((address & 0x3FFFFu) / kDescriptorUnit | panel_bytes / kDescriptorUnit << 16);
}

// High word: distance between swizzle atoms, and the 128-byte swizzle.
__device__ __forceinline__ uint64_t descriptor(uint32_t low) {
    constexpr uint64_t kHigh = kSwizzleAtomBytes / kDescriptorUnit | 1u << 30;
    return kHigh << 32 | low;
}

template <ForwardConfig kConfig>
struct Gemm {
    static constexpr ForwardTile kTile = kConfig.tile;
    static constexpr int32_t kOut = kTile.accumulators();
    static constexpr int32_t kScores = kTile.keys / 2;
    static constexpr int32_t kChunks = kTile.keys / 16;
    static constexpr uint32_t kKeyPanelBytes = static_cast<uint32_t>(kTile.keys) * 128;
    static constexpr uint32_t kRowPanelBytes = kWarpgroupRows * 128;

    // S = Q K^T. q, k: low words of the tiles' descriptors.
    static __device__ __forceinline__ void scores(float (&s)[kScores], uint32_t q, uint32_t k) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kTile.head_dim / 16; ++step) {
            const uint32_t panel = step / 4, in_panel = step % 4 * 32;  // 16 columns are 32 bytes
            const uint32_t q_step = q + (panel * kRowPanelBytes + in_panel) / kDescriptorUnit;
            const uint32_t k_step = k + (panel * kKeyPanelBytes + in_panel) / kDescriptorUnit;
            ptx::wgmma_ss<kConfig.dtype>(s, descriptor(q_step), descriptor(k_step), step != 0);
        }
        ptx::wgmma_commit_group();
    }

    // `v` moved on by `bytes`. The columns of ones stay where they are, so the distance to them shrinks by as much.
    static __device__ __forceinline__ uint32_t advance(uint32_t v, uint32_t bytes) {
        const uint32_t units = bytes / kDescriptorUnit;
        return v + units - (kTile.sums_in_product ? units << 16 : 0);
    }

    // O += P V, or O = P V, over chunks [kBegin, kEnd) of 16 keys, as part of a group. v: low word of the descriptor.
    template <int32_t kBegin, int32_t kEnd>
    static __device__ __forceinline__ void output(float (&o)[kOut], const uint32_t (&p)[kChunks][4], uint32_t v,
                                                  bool accumulate) {
#pragma unroll
        for (int32_t c = kBegin; c < kEnd; ++c)
            ptx::wgmma_rs_mn<kConfig.dtype>(o, p[c], descriptor(advance(v, static_cast<uint32_t>(c) * 16 * 128)),
                                            accumulate || c != 0);
    }
};

}  // namespace foveal::sm90
