// What a launch says of the scores: options beyond a positive scale, a window and sinks. Plain C++: plans fill it.
#pragma once

#include <cstdint>
#include <numbers>

#include "problem/forward.hpp"
#include "sm90/scores/softcap.hpp"

namespace foveal::sm90 {

inline constexpr double kLog2E = std::numbers::log2e;  // exponents are in base 2

// A matrix with a value for each score, [b|1, h_q|1, s_q|1, s_k|1]; strides in elements, 0 where a dimension is shared.
struct ScoreMatrix {
    const void* data;  // null: absent
    int64_t batch_stride, row_stride, head_stride;
    int32_t key_stride;  // 1, or 0
    bool in_vectors;     // every vector (matrix_vectors.hpp) of a row is in the matrix and aligned
};

// What only variants that change the scores read (scores.cuh).
struct ScoreOptions {
    float scale;
    float softcap;       // 0: none
    float cap_argument;  // scale / softcap
    SoftcapPolynomial cap;
    bool last_keys_first;       // K/V blocks in descending order
    const float* alibi_slopes;  // [h_q] or [b, h_q], or null
    int64_t alibi_batch_stride;
    bool only_alibi;  // no other option of the scores
    ScoreMatrix bias;
    bool bias_is_f32;       // else of q's type
    ScoreMatrix mask;       // bytes
    float inverse_softcap;  // of one beyond kLargestFastSoftcap (softcap.hpp); else 0
    bool may_be_wide;       // scores may rise far above those of other keys (forward/softmax.cuh, is_wide())
    // 1, or 0 where one value stands for all; other variants take it to be 1.
    int32_t alibi_head_stride, sinks_head_stride, seqused_q_stride, seqused_k_stride;
};

// All but the pointers. Of a bias and a mask, `in_vectors` holds if their data is aligned.
ScoreOptions score_options_of(const ForwardProblem& problem);

}  // namespace foveal::sm90
