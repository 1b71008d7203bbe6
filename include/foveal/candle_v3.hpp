// The eight functions of candle-flash-attn-v3 (Hugging Face candle's FlashAttention-3 crate) under their own names, for
// code that comes from there. Header only, over foveal.hpp.
//
// Arguments come in the crate's order. What it allocates and returns is `out` here, the caller's, behind v; a CUDA
// stream comes last. Tensors are strided views, on the GPU or in host memory.
//
//   q [b, s_q, h_q, d]    k, v [b, s_k, h_k, d]    out [b, s_q, h_q, d]    alibi_slopes f32 [h_q]
//   varlen: q [total_q, h_q, d]    k, v [total_k, h_k, d]    seqlens_q, seqlens_k i32 [b + 1], cumulated from 0
//
// Every argument does what it says or is refused by a foveal::Error:
//   causal                 query i of s_q sees key j of s_k iff j <= i + s_k - s_q
//   window_size_left/right and i + s_k - s_q - left <= j <= i + s_k - s_q + right; absent: no limit on that side
//   alibi_slopes           the score is lowered by slope * |i + s_k - s_q - j|
//   max_seqlen_q/k         nothing depends on them: they may be anything
//   use_gqa_packing        a hint: heads share a tile wherever that saves tiles, asked for or not
// Any head dimension that the backend supports will do, not only the crate's 64, 128, 256 and 512. softmax_scale is the
// factor on Q*K^T.
#ifndef FOVEAL_CANDLE_V3_HPP
#define FOVEAL_CANDLE_V3_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "foveal/foveal.hpp"

namespace foveal::candle_v3 {
inline namespace v1 {
namespace detail {

struct Window {
    std::optional<size_t> left;
    std::optional<size_t> right;
};

inline Window causal_window(bool causal) { return {{}, causal ? std::optional<size_t>(0) : std::nullopt}; }

inline int64_t width_of(std::optional<size_t> width) {
    constexpr size_t kLargest = std::numeric_limits<int64_t>::max();
    return width.has_value() ? static_cast<int64_t>(std::min(*width, kLargest)) : FOVEAL_UNLIMITED;
}

struct Options {
    Window window;
    Tensor alibi_slopes = {};
    Tensor seqlens_q = {};
    Tensor seqlens_k = {};
};

inline void forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, float softmax_scale,
                    const Options& options, void* stream) {
    foveal_forward_args args = forward_args(q, k, v, out,
                                            {.scale = softmax_scale,
                                             .cu_seqlens_q = options.seqlens_q,
                                             .cu_seqlens_k = options.seqlens_k,
                                             .alibi_slopes = options.alibi_slopes});
    args.window_left = width_of(options.window.left);
    args.window_right = width_of(options.window.right);
    check(foveal_forward(&args, stream));
}

}  // namespace detail

// Attention, causal or full.
inline void flash_attn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, float softmax_scale,
                       bool causal, [[maybe_unused]] bool use_gqa_packing, void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale, {.window = detail::causal_window(causal)}, stream);
}

// Attention in a window.
inline void flash_attn_windowed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                float softmax_scale, std::optional<size_t> window_size_left,
                                std::optional<size_t> window_size_right, [[maybe_unused]] bool use_gqa_packing,
                                void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale, {.window = {window_size_left, window_size_right}}, stream);
}

// Attention with ALiBi slopes, causal or full.
inline void flash_attn_alibi(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                             const Tensor& alibi_slopes, float softmax_scale, bool causal,
                             [[maybe_unused]] bool use_gqa_packing, void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = detail::causal_window(causal), .alibi_slopes = alibi_slopes}, stream);
}

// Attention with ALiBi slopes, in a window.
inline void flash_attn_alibi_windowed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                      const Tensor& alibi_slopes, float softmax_scale,
                                      std::optional<size_t> window_size_left, std::optional<size_t> window_size_right,
                                      [[maybe_unused]] bool use_gqa_packing, void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = {window_size_left, window_size_right}, .alibi_slopes = alibi_slopes}, stream);
}

// Attention of sequences that lie one after the other, causal or full.
inline void flash_attn_varlen(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                              const Tensor& seqlens_q, const Tensor& seqlens_k, [[maybe_unused]] size_t max_seqlen_q,
                              [[maybe_unused]] size_t max_seqlen_k, float softmax_scale, bool causal,
                              [[maybe_unused]] bool use_gqa_packing, void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = detail::causal_window(causal), .seqlens_q = seqlens_q, .seqlens_k = seqlens_k}, stream);
}

// The same in a window.
inline void flash_attn_varlen_windowed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                       const Tensor& seqlens_q, const Tensor& seqlens_k,
                                       [[maybe_unused]] size_t max_seqlen_q, [[maybe_unused]] size_t max_seqlen_k,
                                       float softmax_scale, std::optional<size_t> window_size_left,
                                       std::optional<size_t> window_size_right, [[maybe_unused]] bool use_gqa_packing,
                                       void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = {window_size_left, window_size_right}, .seqlens_q = seqlens_q, .seqlens_k = seqlens_k},
                    stream);
}

// The same with ALiBi slopes, causal or full.
inline void flash_attn_varlen_alibi(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                    const Tensor& alibi_slopes, const Tensor& seqlens_q, const Tensor& seqlens_k,
                                    [[maybe_unused]] size_t max_seqlen_q, [[maybe_unused]] size_t max_seqlen_k,
                                    float softmax_scale, bool causal, [[maybe_unused]] bool use_gqa_packing,
                                    void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = detail::causal_window(causal),
                     .alibi_slopes = alibi_slopes,
                     .seqlens_q = seqlens_q,
                     .seqlens_k = seqlens_k},
                    stream);
}

// The same with ALiBi slopes, in a window.
inline void flash_attn_varlen_alibi_windowed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                             const Tensor& alibi_slopes, const Tensor& seqlens_q,
                                             const Tensor& seqlens_k, [[maybe_unused]] size_t max_seqlen_q,
                                             [[maybe_unused]] size_t max_seqlen_k, float softmax_scale,
                                             std::optional<size_t> window_size_left,
                                             std::optional<size_t> window_size_right,
                                             [[maybe_unused]] bool use_gqa_packing, void* stream = nullptr) {
    detail::forward(q, k, v, out, softmax_scale,
                    {.window = {window_size_left, window_size_right},
                     .alibi_slopes = alibi_slopes,
                     .seqlens_q = seqlens_q,
                     .seqlens_k = seqlens_k},
                    stream);
}

}  // namespace v1
}  // namespace foveal::candle_v3

#endif
