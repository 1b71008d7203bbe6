// What the sm90 backend asks of CUDA. A build without CUDA plans all the same: there device_without_cuda.cpp answers.
#pragma once

#include <cstdint>

#include "cuda/traits.hpp"
#include "problem/append.hpp"
#include "problem/backward.hpp"
#include "problem/cache_copy.hpp"
#include "problem/forward.hpp"
#include "problem/merge.hpp"

namespace foveal::sm90 {

struct PreparedBackward;  // backward/plan.hpp
struct PreparedDecode;    // decode/plan.hpp
struct PreparedE4m3;      // forward/e4m3/plan.hpp
struct PreparedForward;   // forward/plan.hpp

// Is this host pointer device memory? false where there is no driver.
bool holds(const void* pointer);

// The device that a stream belongs to. Throws Error(NO_DEVICE) where there is none.
int32_t device_of(void* stream);

// -1: of a generic H200. Throws Error(NO_DEVICE) unless `device` is a Hopper GPU.
cuda::DeviceTraits traits_of(int32_t device);

// Enqueues the kernel on `stream`, whose device must be `device`. The grid is not empty.
void launch_forward(const ForwardProblem& problem, const PreparedForward& kernel, int32_t device,
                    const ForwardPointers& pointers, void* stream);

// The same over e4m3.
void launch_e4m3_forward(const ForwardProblem& problem, const PreparedE4m3& kernel, int32_t device,
                         const ForwardPointers& pointers, void* stream);

// The same of the decode kernel: split over the GPU if there is a workspace.
void launch_decode(const ForwardProblem& problem, const PreparedDecode& kernel, int32_t device,
                   const ForwardPointers& pointers, void* stream);

// Enqueues the backward's kernels on `stream`, whose device must be `device`.
void launch_backward(const BackwardProblem& problem, const PreparedBackward& prepared, int32_t device,
                     const BackwardPointers& pointers, void* stream);

// Enqueues the append on `stream`, on the stream's device.
void launch_append(const Append& append, void* stream);

// Enqueues the copy of pages, or the gather, on `stream`, on the stream's device.
void launch_cache_copy(const CacheCopy& copy, void* stream);

// Enqueues the merge on `stream`, on the stream's device.
void launch_merge(const Merge& merge, void* stream);

}  // namespace foveal::sm90
