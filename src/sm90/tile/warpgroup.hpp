// What the hardware fixes of a warpgroup, the unit that issues wgmma, and of the SM that it runs on. Host and device
// share it.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

inline constexpr int32_t kWarpThreads = 32;
inline constexpr int32_t kWarpgroupThreads = 128;
inline constexpr int32_t kWarpgroupWarps = kWarpgroupThreads / kWarpThreads;

// Rows of every wgmma (its M), and of them those that one warp holds in its registers.
inline constexpr int32_t kWarpgroupRows = 64;
inline constexpr int32_t kWarpRows = kWarpgroupRows / kWarpgroupWarps;

inline constexpr int32_t kRegistersPerSm = 65536;
inline constexpr int32_t kMaxSharedBytes = 232448;  // that one CTA can have

}  // namespace foveal::sm90
