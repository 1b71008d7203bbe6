// One forward problem: everything that decides what is computed, nothing that says where the data lie.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "foveal/foveal.h"
#include "problem/mask.hpp"

namespace foveal {

// What the library throws; c_api.cpp turns it into a status and a message.
class Error : public std::runtime_error {
   public:
    Error(foveal_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    foveal_status status() const { return status_; }

   private:
    foveal_status status_;
};

enum class DType : int32_t { f32 = FOVEAL_F32, bf16 = FOVEAL_BF16, f16 = FOVEAL_F16 };

int64_t bytes_of(DType dtype);
const char* name_of(DType dtype);

// Distance in elements between neighbours of a [b, s, h, d] tensor; varlen: batch is 0, row is the token.
// A dimension of size 1 has stride 0 here, whatever the caller gave.
struct Strides {
    int64_t batch = 0;
    int64_t row = 0;
    int64_t head = 0;
    bool operator==(const Strides&) const = default;
};

struct Problem {
    DType dtype = DType::bf16;
    bool varlen = false;
    bool has_seqused_q = false;
    bool has_seqused_k = false;
    bool wants_lse = false;

    int64_t batch = 0;
    int64_t rows_q = 0;  // dense: s_q; varlen: total_q
    int64_t rows_k = 0;  // dense: s_k; varlen: total_k
    int64_t heads_q = 0;
    int64_t heads_k = 0;
    int64_t head_dim = 0;
    int64_t head_dim_v = 0;

    Strides q, k, v, out, lse;

    float scale = 0;  // never NaN: the default is filled in
    int64_t window_left = FOVEAL_UNLIMITED;
    int64_t window_right = FOVEAL_UNLIMITED;
    foveal_alignment alignment = FOVEAL_BOTTOM_RIGHT;
    int64_t chunk = 0;  // 0: no chunks

    float softcap = 0;  // 0: none
    bool has_alibi = false;
    int64_t alibi_batch_stride = 0;  // of [b, h_q] slopes; [h_q]: 0
    bool has_sinks = false;
    bool has_bias = false;
    DType bias_dtype = DType::f32;
    Strides bias;  // 0 where a dimension is shared
    bool has_mask = false;
    Strides mask;

    bool operator==(const Problem&) const = default;

    int64_t group() const { return heads_q / heads_k; }
    // Is a score anything but scale * q.k under a window?
    bool modifies_scores() const { return softcap > 0 || has_alibi || has_bias || has_mask; }
    Window window() const;
    // Rows of q over the whole batch, an upper bound of the work when seqused or varlen shorten it.
    int64_t total_rows_q() const { return varlen ? rows_q : batch * rows_q; }
};

// Where the data lie. Shapes in elements: see foveal.h.
struct Pointers {
    const void* q = nullptr;                // [b, s_q, h_q, d] or [total_q, h_q, d]
    const void* k = nullptr;                // [b, s_k, h_k, d] or [total_k, h_k, d]
    const void* v = nullptr;                // [b, s_k, h_k, d_v] or [total_k, h_k, d_v]
    void* out = nullptr;                    // [b, s_q, h_q, d_v] or [total_q, h_q, d_v]
    float* lse = nullptr;                   // [b, h_q, s_q] or [h_q, total_q]
    const int32_t* cu_seqlens_q = nullptr;  // [b + 1]
    const int32_t* cu_seqlens_k = nullptr;  // [b + 1]
    const int32_t* seqused_q = nullptr;     // [b]
    const int32_t* seqused_k = nullptr;     // [b]
    const float* alibi_slopes = nullptr;    // [h_q] or [b, h_q]
    const float* sinks = nullptr;           // [h_q]
    const void* bias = nullptr;             // [b|1, h_q|1, s_q, s_k]
    const uint8_t* mask = nullptr;          // [b|1, h_q|1, s_q, s_k]
};

// Shapes, strides, dtypes and options, independent of any backend. Throws Error(INVALID_ARGUMENT) naming the argument.
Problem validate(const foveal_forward_args& args);

// The data pointers: present where elements are, aligned to their element. Throws as validate() does.
Pointers pointers_of(const foveal_forward_args& args, const Problem& problem);

}  // namespace foveal
