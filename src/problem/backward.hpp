// One backward problem (contract 1.13): the forward problem and which of its gradients are asked.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"
#include "problem/dtype.hpp"
#include "problem/forward.hpp"
#include "problem/strides.hpp"

namespace foveal {

// Where the data lie. Shapes in elements: see foveal.h. What is not asked is null, and what is but has no elements.
struct BackwardPointers {
    ForwardPointers forward;         // out and lse are read; without the forward call's workspace
    const void* dout = nullptr;      // [b, s_q, h_q, d_v] or [total_q, h_q, d_v]
    const float* dlse = nullptr;     // [b, h_q, s_q] or [h_q, total_q]
    void* dq = nullptr;              // [b, s_q, h_q, d] or [total_q, h_q, d]
    void* dk = nullptr;              // [b, s_k, h_k, d] or [total_k, h_k, d]
    void* dv = nullptr;              // [b, s_k, h_k, d_v] or [total_k, h_k, d_v]
    float* dsinks = nullptr;         // [h_q]
    void* dbias = nullptr;           // [b|1, h_q|1, s_q|1, s_k|1]
    float* dalibi_slopes = nullptr;  // [h_q] or [b, h_q]
    void* workspace = nullptr;
    uint64_t workspace_bytes = 0;
};

struct BackwardProblem {
    ForwardProblem forward;  // wants_lse

    bool has_dlse = false;
    bool wants_dq = false;
    bool wants_dk = false;
    bool wants_dv = false;
    bool wants_dsinks = false;
    bool wants_dbias = false;
    bool wants_dalibi = false;

    // As the forward's of what they are gradients of; of dsinks and dalibi, head is 1 where there are several.
    Strides dout, dlse, dq, dk, dv, dsinks, dalibi;
    DType dq_dtype = DType::f32, dk_dtype = DType::f32, dv_dtype = DType::f32;  // q's, or f32
    DType dbias_dtype = DType::f32;
    ScoreStrides dbias;  // 0: that dimension is summed over, or has size 1

    bool operator==(const BackwardProblem&) const = default;
};

// Shapes, strides, dtypes and options, independent of any backend. Throws Error(INVALID_ARGUMENT) naming the argument.
BackwardProblem validate(const foveal_backward_args& args);

// The data pointers of validated arguments: present where elements are, aligned to their element, and no byte of what
// is written in what is read or in what else is written. Throws as validate() does.
BackwardPointers pointers_of(const foveal_backward_args& args);

// What no backend has a gradient of: keys in pages. Throws Error(UNSUPPORTED).
void require_differentiable(const BackwardProblem& problem);

// What a backend asks whose launch uses a workspace of so many bytes. Throws Error(INVALID_ARGUMENT).
void require_workspace(const BackwardPointers& pointers, int64_t needed_bytes);

}  // namespace foveal
