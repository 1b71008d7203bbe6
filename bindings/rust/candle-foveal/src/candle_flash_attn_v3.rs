//! The eight functions of `candle-flash-attn-v3`, with their names and arguments.
//!
//! q `[b, s_q, h_q, d]`, k and v `[b, s_k, h_k, d]`, the result `[b, s_q, h_q, d]`; varlen `[total, h, d]` with `seqlens`,
//! u32 `[b + 1]`, cumulated from 0. Every argument does what it says or is refused by name:
//!
//! - `causal`: query i of s_q sees key j of s_k iff `j <= i + s_k - s_q`.
//! - `window_size_left`, `window_size_right`: and `i + s_k - s_q - left <= j <= i + s_k - s_q + right`; `None`: no limit on
//!   that side.
//! - `alibi_slopes`: f32 `[h_q]`; the score is lowered by `slope * |i + s_k - s_q - j|`.
//! - `softmax_scale`: the factor on Q·Kᵀ; NaN is refused.
//! - `max_seqlen_q`, `max_seqlen_k`: nothing depends on them, they may be anything.
//! - `use_gqa_packing`: a hint. Heads share a tile wherever that saves tiles, asked for or not.
#![allow(clippy::too_many_arguments)] // the crate's own

use candle_core::{Result, Tensor};

use crate::candle_flash_attn as v2;

/// Attention, causal or full.
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn(q, k, v, softmax_scale, causal)
}

/// Attention in a window.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_windowed(q, k, v, softmax_scale, window_size_left, window_size_right)
}

/// Attention with ALiBi slopes, causal or full.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_alibi(q, k, v, alibi_slopes, softmax_scale, causal)
}

/// Attention with ALiBi slopes, in a window.
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, window_size_left, window_size_right)
}

/// Attention of sequences that lie one after the other, causal or full.
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_varlen(q, k, v, seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal)
}

/// The same in a window.
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_varlen_windowed(
        q,
        k,
        v,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
    )
}

/// The same with ALiBi slopes, causal or full.
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_varlen_alibi(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
    )
}

/// The same with ALiBi slopes, in a window.
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    _use_gqa_packing: bool,
) -> Result<Tensor> {
    v2::flash_attn_varlen_alibi_windowed(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
    )
}
