// Merging of partial results on Hopper.
#pragma once

#include "problem/merge.hpp"

namespace foveal::sm90 {

// Enqueues the merge on `stream`, on the stream's device. Throws Error(NO_DEVICE) where that is no Hopper GPU.
void launch_merge(const Merge& merge, void* stream);

}  // namespace foveal::sm90
