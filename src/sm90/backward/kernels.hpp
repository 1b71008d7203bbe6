// The kernels of the backward, as the CUDA runtime's launch functions take them.
#pragma once

#include "sm90/backward/tiles.hpp"

namespace foveal::sm90 {

// Address of backward<Instance>, each defined in a .cu of its own dtype and head dimension.
template <class Instance>
const void* backward_kernel();

// The two in place of it where heads are wide.
template <class Instance>
const void* wide_keys_kernel();
template <class Instance>
const void* wide_queries_kernel();

// The three in place of it where they are widest.
template <class Instance, WidestGradient kGradient>
const void* widest_kernel();

// The one before it, and the one after it.
template <class Instance>
const void* prepare_kernel();
template <class Instance>
const void* finish_kernel();

// The gradients of a bias and of slopes, without and with dropout, and what adds their parts.
template <DType kType, bool kDrops>
const void* score_sums_kernel();
template <DType kType>
const void* add_score_sums_kernel();

}  // namespace foveal::sm90
