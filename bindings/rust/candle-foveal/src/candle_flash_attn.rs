//! The eleven functions of `candle-flash-attn`, with their names and arguments.
//!
//! q `[b, s_q, h_q, d]`, k and v `[b, s_k, h_k, d]`, the result `[b, s_q, h_q, d]`; varlen `[total, h, d]` with `seqlens`,
//! u32 `[b + 1]`, cumulated from 0. Every argument does what it says or is refused by name; beside those of
//! [`candle_flash_attn_v3`](crate::candle_flash_attn_v3):
//!
//! - `softcap`: `c > 0`: the score x becomes `c · tanh(x / c)`; 0: none; below 0 or NaN: refused.
//! - `block_table`, `page_block_size`: a paged cache, of any page size. `mm_prefix_ranges`: refused.
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

/// The same over a paged cache: k and v `[pages, page_block_size, h_k, d]`, block_table u32 `[b, max_pages]`.
///
/// `seqlens_k` is cumulated, as everywhere here; the lengths, its differences, are a tensor of `b` numbers that candle
/// computes on the device. `mm_prefix_ranges` is refused by name. The arguments leave no room for a
/// [`workspace`](crate::Attention::workspace), without which a GPU decodes few long sequences slowly.
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    _max_seqlen_q: usize,
    _max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    if let Some(ranges) = mm_prefix_ranges {
        bail!(
            "mm_prefix_ranges (shape {:?}): foveal does not have ranges whose queries see all of their keys",
            ranges.dims()
        )
    }
    if k.rank() != 4 || k.dim(1)? != page_block_size {
        bail!("page_block_size is {page_block_size}, and k has the shape {:?}; its second size is meant", k.dims())
    }
    let Some(sequences) = seqlens_k.dims1()?.checked_sub(1) else { bail!("seqlens_k is empty; it has b + 1 entries") };
    let lengths = (seqlens_k.narrow(0, 1, sequences)? - seqlens_k.narrow(0, 0, sequences)?)?;
    attention(softmax_scale)?
        .window(window_size_left, window_size_right)
        .softcap(softcap.unwrap_or(0.0))
        .seqlens_q(seqlens_q)
        .seqused_k(&lengths)
        .block_table(block_table)
        .forward(q, k, v)
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
