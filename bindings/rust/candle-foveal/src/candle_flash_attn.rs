//! The eleven functions of `candle-flash-attn`, with their names and arguments.
//!
//! q `[b, s_q, h_q, d]`, k and v `[b, s_k, h_k, d]`, the result `[b, s_q, h_q, d]`; varlen `[total, h, d]` with `seqlens`,
//! u32 `[b + 1]`, cumulated from 0. Every argument does what it says or is refused by name; beside those of
//! [`candle_flash_attn_v3`](crate::candle_flash_attn_v3):
//!
//! - `softcap`: `c > 0`: the score x becomes `c · tanh(x / c)`; 0: none; below 0 or NaN: refused.
//! - `block_table`: refused. foveal has no paged caches yet.
#![allow(clippy::too_many_arguments)] // the crate's own

use candle_core::{bail, Result, Tensor};

use crate::Attention;

fn attention(softmax_scale: f32) -> Result<Attention> {
    if softmax_scale.is_nan() {
        bail!("softmax_scale is NaN")
    }
    Ok(Attention::new().scale(softmax_scale))
}

fn causal_window(causal: bool) -> Option<usize> {
    causal.then_some(0)
}

fn with_slopes(attention: Attention, alibi_slopes: Option<&Tensor>) -> Attention {
    match alibi_slopes {
        Some(slopes) => attention.alibi_slopes(slopes),
        None => attention,
    }
}

/// Attention, causal or full.
pub fn flash_attn(q: &Tensor, k: &Tensor, v: &Tensor, softmax_scale: f32, causal: bool) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal_window(causal))
}

/// Attention in a window.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    flash_attn_alibi_windowed_softcap(q, k, v, None, softmax_scale, window_size_left, window_size_right, 0.0)
}

/// Attention with ALiBi slopes, causal or full.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, None, causal_window(causal))
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
) -> Result<Tensor> {
    let slopes = Some(alibi_slopes);
    flash_attn_alibi_windowed_softcap(q, k, v, slopes, softmax_scale, window_size_left, window_size_right, 0.0)
}

/// Attention with ALiBi slopes or without, in a window, with capped scores.
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    with_slopes(attention(softmax_scale)?, alibi_slopes)
        .window(window_size_left, window_size_right)
        .softcap(softcap)
        .forward(q, k, v)
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
) -> Result<Tensor> {
    flash_attn_varlen_windowed(
        q,
        k,
        v,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        None,
        causal_window(causal),
    )
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
) -> Result<Tensor> {
    flash_attn_varlen_alibi_windowed_softcap(
        q,
        k,
        v,
        None,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
        0.0,
    )
}

/// The same over a paged cache: refused, for foveal has no paged caches yet. The error names `block_table`.
pub fn flash_attn_varlen_paged_windowed(
    _q: &Tensor,
    _k: &Tensor,
    _v: &Tensor,
    _seqlens_q: &Tensor,
    _seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    _max_seqlen_q: usize,
    _max_seqlen_k: usize,
    _softmax_scale: f32,
    _window_size_left: Option<usize>,
    _window_size_right: Option<usize>,
    page_block_size: usize,
    _softcap: Option<f32>,
) -> Result<Tensor> {
    let ranges = if mm_prefix_ranges.is_some() { ", mm_prefix_ranges" } else { "" };
    bail!(
        "block_table (shape {:?}), page_block_size ({page_block_size}){ranges}: foveal has no paged caches yet; gather \
         the pages and call flash_attn_varlen_windowed",
        block_table.dims()
    )
}

/// Attention of sequences that lie one after the other, with ALiBi slopes, causal or full.
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
) -> Result<Tensor> {
    flash_attn_varlen_alibi_windowed(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        None,
        causal_window(causal),
    )
}

/// The same in a window.
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
) -> Result<Tensor> {
    flash_attn_varlen_alibi_windowed_softcap(
        q,
        k,
        v,
        Some(alibi_slopes),
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
        0.0,
    )
}

/// The same with ALiBi slopes or without, with capped scores.
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    _max_seqlen_q: usize,
    _max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    with_slopes(attention(softmax_scale)?, alibi_slopes)
        .window(window_size_left, window_size_right)
        .softcap(softcap)
        .seqlens(seqlens_q, seqlens_k)
        .forward(q, k, v)
}
