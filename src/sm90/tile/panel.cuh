// Where the elements of a panel (panel.hpp) lie, and how wgmma is told of it: panels have the 128-byte swizzle and are
// aligned to 1024 bytes. PTX ISA, "Matrix Descriptor Format":
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout-matrix-descriptor
#pragma once

#include <cstdint>

#include "sm90/tile/panel.hpp"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// Addresses in a descriptor count 16 bytes.
inline constexpr uint32_t kDescriptorBytes = 16;
inline constexpr uint32_t kSwizzleAtomBytes = 8 * kPanelRowBytes;

// Byte offset, in a panel, of a row's 16-byte vector.
__device__ __forceinline__ uint32_t swizzled(int32_t row, int32_t vector) {
    return static_cast<uint32_t>(row * kPanelRowBytes + ((vector ^ (row & 7)) << 4));
}

// Low word of a descriptor: the start address, and the leading dimension's byte offset, which is the distance between
// panels and only read for MN-major operands.
__device__ __forceinline__ uint32_t descriptor_low(const void* tile, uint32_t panel_bytes) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
    return uniform((address & 0x3FFFFu) / kDescriptorBytes | panel_bytes / kDescriptorBytes << 16);
}

// With the high word, which all have in common: the distance between swizzle atoms, and the 128-byte swizzle.
__device__ __forceinline__ uint64_t descriptor(uint32_t low) {
    constexpr uint64_t kHigh = kSwizzleAtomBytes / kDescriptorBytes | 1u << 30;
    return kHigh << 32 | low;
}

}  // namespace foveal::sm90
