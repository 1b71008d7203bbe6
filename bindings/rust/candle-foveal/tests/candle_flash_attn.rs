//! The tests that candle-flash-attn has of its functions, by their names and with the numbers that they expect.

mod literals;
mod problem;
mod support;

use candle_core::{DType, Result, Tensor};
use candle_foveal::candle_flash_attn;
use problem::{counted, device, expect_literals, expect_refusal, textbook};

#[test]
fn flash_attn_acausal() -> Result<()> {
    let [q, k, v] = counted(&[1, 3, 2, 8], [30., 40., 50.])?;
    let [tq, tk, tv] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    let out = candle_flash_attn::flash_attn(&tq, &tk, &tv, 0.5, false)?.transpose(1, 2)?;
    expect_literals(&out.squeeze(0)?, &[3, 2, 8], &literals::THREE_SHORT_HEADS)?;
    let rounded = textbook(&q, &k, &v, 0.5)?.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
    let difference = (rounded - out.to_dtype(DType::F32)?)?.abs()?.max_all()?;
    assert!(difference.to_scalar::<f32>()? < 1e-5, "{difference}");
    Ok(())
}

#[test]
fn flash_attn_acausal_softcap() -> Result<()> {
    let [q, k, v] = counted(&[1, 3, 5, 8], [30., 40., 50.])?;
    let [tq, tk, tv] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    let out = candle_flash_attn::flash_attn_alibi_windowed_softcap(&tq, &tk, &tv, None, 1., None, None, 5.)?;
    let [q, k, v] = [q.to_dtype(DType::F32)?, k.to_dtype(DType::F32)?, v.to_dtype(DType::F32)?];
    let scores = ((q.matmul(&k.t()?.contiguous()?)? / 5.)?.tanh()? * 5.)?;
    let expected = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
    let difference = (expected - out.transpose(1, 2)?.to_dtype(DType::F32)?)?.abs()?.max_all()?;
    assert!(difference.to_scalar::<f32>()? < 1e-3, "{difference}");
    Ok(())
}

#[test]
fn flash_attn_varlen() -> Result<()> {
    let [q, k, v] = counted(&[3, 2, 8], [30., 40., 50.])?;
    let seqlens = Tensor::new(&[0u32, 2], &device()?)?;
    let [q, k, v] = [q.transpose(0, 1)?, k.transpose(0, 1)?, v.transpose(0, 1)?];
    let out = candle_flash_attn::flash_attn_varlen(&q, &k, &v, &seqlens, &seqlens, 32, 32, 0.5, false)?;
    expect_literals(&out.transpose(0, 1)?, &[3, 2, 8], &literals::THREE_SHORT_HEADS)
}

/// Paged caches are to come; until then the call is refused by the argument's name.
#[test]
fn flash_attn_varlen_paged_is_refused_by_name() -> Result<()> {
    let q = Tensor::zeros((4, 8, 64), DType::BF16, &device()?)?;
    let pages = Tensor::zeros((2, 32, 2, 64), DType::BF16, &device()?)?;
    let seqlens = Tensor::new(&[0u32, 4], &device()?)?;
    let table = Tensor::new(&[[1u32, 0]], &device()?)?;
    let call = |ranges: Option<&Tensor>| {
        candle_flash_attn::flash_attn_varlen_paged_windowed(
            &q, &pages, &pages, &seqlens, &seqlens, &table, ranges, 4, 4, 1., None, None, 32, None,
        )
    };
    expect_refusal(call(None), &["block_table", "page_block_size"]);
    expect_refusal(call(Some(&table)), &["block_table", "mm_prefix_ranges"]);
    Ok(())
}
