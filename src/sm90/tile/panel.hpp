// A matrix in shared memory is a row of panels. A panel is 128 bytes wide, as the widest swizzle is, and as high as the
// matrix. Host and device share it.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

inline constexpr int32_t kPanelRowBytes = 128;
inline constexpr int32_t kVectorBytes = 16;  // what the swizzle moves as a whole
inline constexpr int32_t kRowVectors = kPanelRowBytes / kVectorBytes;

// Columns of 16-bit elements in a panel, and in one of its vectors.
inline constexpr int32_t kPanelColumns = kPanelRowBytes / 2;
inline constexpr int32_t kVectorColumns = kVectorBytes / 2;

}  // namespace foveal::sm90
