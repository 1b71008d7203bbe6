//! The tests that candle-flash-attn-v3 has of its functions, by their names and with the numbers that they expect, and
//! windows and ALiBi slopes, which it has no tests of. On a GPU with FOVEAL_TEST_CUDA=1 and the feature `cuda`.

mod literals;
mod problem;
mod support;

use candle_core::{DType, Result, Tensor};
use candle_foveal::candle_flash_attn_v3;
use problem::{counted, device, expect_literals, expect_textbook, textbook};

#[test]
fn flash_attn_acausal() -> Result<()> {
    let [q, k, v] = counted(&[1, 3, 2, 64], [300., 400., 500.])?;
    let [tq, tk, tv] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    let out = candle_flash_attn_v3::flash_attn(&tq, &tk, &tv, 0.5, false, false)?.transpose(1, 2)?;
    expect_literals(&out.squeeze(0)?, &[3, 2, 64], &literals::THREE_HEADS)?;
    expect_textbook(&out, &q, &k, &v, 0.5)
}

#[test]
fn flash_attn_acausal_gqa() -> Result<()> {
    let [q, k, v] = counted(&[1, 4, 2, 64], [1000., 400., 500.])?;
    let q = q.transpose(1, 2)?;
    let k = k.narrow(1, 0, 1)?.transpose(1, 2)?;
    let v = v.narrow(1, 0, 1)?.transpose(1, 2)?;
    let out = candle_flash_attn_v3::flash_attn(&q, &k, &v, 0.125, false, true)?.transpose(1, 2)?;
    expect_literals(&out.squeeze(0)?, &[4, 2, 64], &literals::GROUPED_HEADS)
}

#[test]
fn flash_attn_varlen() -> Result<()> {
    let [q, k, v] = counted(&[3, 2, 64], [300., 400., 500.])?;
    let seqlens = Tensor::new(&[0u32, 2], &device()?)?;
    let out = candle_flash_attn_v3::flash_attn_varlen(
        &q.transpose(0, 1)?,
        &k.transpose(0, 1)?,
        &v.transpose(0, 1)?,
        &seqlens,
        &seqlens,
        2,
        2,
        0.5,
        false,
        false,
    )?;
    expect_literals(&out.transpose(0, 1)?, &[3, 2, 64], &literals::THREE_HEADS)
}

fn varlen_param(head_dim: usize, seq_len: usize) -> Result<()> {
    let unit = (head_dim * seq_len) as f64;
    let [q, k, v] = counted(&[3, seq_len, head_dim], [3. * unit, 4. * unit, 2. * unit])?;
    let seqlens = Tensor::new(&[0u32, seq_len as u32], &device()?)?;
    let [tq, tk, tv] = [q.transpose(0, 1)?, k.transpose(0, 1)?, v.transpose(0, 1)?];
    let out = candle_flash_attn_v3::flash_attn_varlen(
        &tq, &tk, &tv, &seqlens, &seqlens, seq_len, seq_len, 0.5, false, false,
    )?;
    let out = out.transpose(0, 1)?.to_dtype(DType::F32)?;
    assert_eq!(out.dims(), &[3, seq_len, head_dim]);
    let difference = (textbook(&q, &k, &v, 0.5)? - out)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 5e-3, "{difference}");
    Ok(())
}

macro_rules! of_each_head_dim_and_length {
    ($($head_dim:literal $name:ident),*) => {
        mod flash_attn_varlen_param {
            $(mod $name {
                #[test]
                fn seq_len_2() -> candle_core::Result<()> {
                    crate::varlen_param($head_dim, 2)
                }
                #[test]
                fn seq_len_4() -> candle_core::Result<()> {
                    crate::varlen_param($head_dim, 4)
                }
                #[test]
                fn seq_len_9() -> candle_core::Result<()> {
                    crate::varlen_param($head_dim, 9)
                }
            })*
        }
    };
}
of_each_head_dim_and_length!(64 head_dim_64, 128 head_dim_128, 256 head_dim_256, 512 head_dim_512);
