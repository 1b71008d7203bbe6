// What a merge hands to its kernel, and which kernels there are.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"
#include "problem/dtype.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kMergeThreads = 256;   // a CTA
inline constexpr int32_t kMergeTileRows = 64;   // that a CTA merges at a time
inline constexpr int32_t kMergePackBytes = 16;  // that a thread reads at once where alignment permits

// A part or, written, the merged result.
struct MergeRows {
    void* out;   // [b, rows, h, d_v]
    float* lse;  // [b, h, rows] or, of the merged result, null
    int64_t out_batch_stride, out_row_stride, out_head_stride;
    int64_t lse_batch_stride, lse_head_stride;
};

struct MergeParams {
    int64_t all_rows;  // b * rows * h
    int64_t rows;
    int64_t heads;
    int64_t head_dim;
    int32_t parts;
    int32_t row_threads_log2;  // threads that share a row in step 2
    MergeRows merged;
    MergeRows part[FOVEAL_MAX_MERGE_PARTS];
};
static_assert(sizeof(MergeParams) <= 4096, "the parameters of a kernel");

// Address of the kernel for parts and a result of these types, as the CUDA runtime takes it. kPacked: all rows can be
// read and written 16 bytes at a time.
template <DType kIn, DType kOut, bool kPacked>
const void* merge_kernel();

}  // namespace foveal::sm90
