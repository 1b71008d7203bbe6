//! Every function and option against float64 under the contract's tolerance; what is refused, and by which name.

mod problem;
mod support;

use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::{candle_flash_attn as v2, candle_flash_attn_v3 as v3, merge, Attention};
use problem::{bits, device, expect_refusal, expect_right, formats, seqlens, tensors, FORMS};
use support::random::Random;
use support::{random_data, Format, Problem};

const SCALE: f32 = 0.17;

/// Causal, full, and windows of each kind: (left, right).
const WINDOWS: [(Option<usize>, Option<usize>); 6] =
    [(None, None), (None, Some(0)), (Some(7), Some(3)), (Some(20), None), (None, Some(5)), (Some(0), Some(0))];

/// All of both crates' functions that fit the problem give what it says.
fn expect_all_functions_right(p: &Problem, varlen: bool) -> Result<()> {
    let data = random_data(p, 1);
    let [q, k, v] = &tensors(p, &data, varlen)?;
    let [lens_q, lens_k] = &seqlens(p)?;
    let slopes = if p.slopes.is_empty() { vec![0.] } else { p.slopes.clone() }; // without them nobody takes the tensor
    let slopes = &Tensor::new(slopes, &device()?)?;
    let (left, right) = (p.left, p.right);
    let causal = right == Some(0);
    let whole = left.is_none() && (right.is_none() || causal);
    let mut outs = Vec::new();
    match (varlen, p.slopes.is_empty()) {
        (false, true) => {
            outs.push(v2::flash_attn_windowed(q, k, v, SCALE, left, right)?);
            outs.push(v3::flash_attn_windowed(q, k, v, SCALE, left, right, true)?);
            outs.push(v2::flash_attn_alibi_windowed_softcap(q, k, v, None, SCALE, left, right, 0.)?);
            if whole {
                outs.push(v2::flash_attn(q, k, v, SCALE, causal)?);
                outs.push(v3::flash_attn(q, k, v, SCALE, causal, false)?);
            }
        }
        (false, false) => {
            outs.push(v2::flash_attn_alibi_windowed(q, k, v, slopes, SCALE, left, right)?);
            outs.push(v3::flash_attn_alibi_windowed(q, k, v, slopes, SCALE, left, right, true)?);
            if whole {
                outs.push(v2::flash_attn_alibi(q, k, v, slopes, SCALE, causal)?);
                outs.push(v3::flash_attn_alibi(q, k, v, slopes, SCALE, causal, false)?);
            }
        }
        (true, true) => {
            outs.push(v2::flash_attn_varlen_windowed(q, k, v, lens_q, lens_k, 9, 9, SCALE, left, right)?);
            outs.push(v3::flash_attn_varlen_windowed(q, k, v, lens_q, lens_k, 9, 9, SCALE, left, right, true)?);
            if whole {
                outs.push(v2::flash_attn_varlen(q, k, v, lens_q, lens_k, 0, 0, SCALE, causal)?);
                outs.push(v3::flash_attn_varlen(q, k, v, lens_q, lens_k, 0, 0, SCALE, causal, false)?);
            }
        }
        (true, false) => {
            outs.push(v2::flash_attn_varlen_alibi_windowed(q, k, v, slopes, lens_q, lens_k, 9, 9, SCALE, left, right)?);
            outs.push(v3::flash_attn_varlen_alibi_windowed(
                q, k, v, slopes, lens_q, lens_k, 9, 9, SCALE, left, right, true,
            )?);
            if whole {
                outs.push(v2::flash_attn_varlen_alibi(q, k, v, slopes, lens_q, lens_k, 0, 0, SCALE, causal)?);
                outs.push(v3::flash_attn_varlen_alibi(q, k, v, slopes, lens_q, lens_k, 0, 0, SCALE, causal, false)?);
            }
        }
    }
    expect_right(p, &data, &outs[0], None)?;
    for out in &outs {
        assert_eq!(bits(out)?, bits(&outs[0])?, "the functions differ: {p:?}");
    }
    Ok(())
}

#[test]
fn all_functions_are_exact_in_every_window() -> Result<()> {
    for &format in formats()? {
        for (varlen, lengths) in FORMS {
            for slopes in [vec![], vec![0.5, 0.25, 0.125, 0.0625]] {
                for (left, right) in WINDOWS {
                    let mut p = Problem::new(format, &lengths, (4, 2), 32);
                    (p.scale, p.left, p.right, p.slopes) = (Some(SCALE), left, right, slopes.clone());
                    expect_all_functions_right(&p, varlen)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn softcaps_of_varlen_are_exact() -> Result<()> {
    let mut p = Problem::new(Format::Bf16, &[(30, 50), (41, 9)], (4, 2), 32);
    (p.scale, p.softcap, p.logits, p.slopes) = (Some(SCALE), 3., 5., vec![0.5, 0.25, 0.125, 0.0625]);
    let data = random_data(&p, 2);
    let [q, k, v] = &tensors(&p, &data, true)?;
    let [lens_q, lens_k] = &seqlens(&p)?;
    let slopes = Tensor::new(p.slopes.clone(), &device()?)?;
    let out = v2::flash_attn_varlen_alibi_windowed_softcap(
        q,
        k,
        v,
        Some(&slopes),
        lens_q,
        lens_k,
        41,
        50,
        SCALE,
        None,
        None,
        3.,
    )?;
    expect_right(&p, &data, &out, None)
}

#[test]
fn all_options_together_are_exact_with_their_lse() -> Result<()> {
    let mut random = Random::new(3);
    for &format in formats()? {
        let mut p = Problem::new(format, &[(30, 50); 2], (4, 2), 32);
        p.d_v = 24;
        (p.left, p.right, p.chunk, p.softcap, p.top_left) = (Some(25), Some(4), 16, 8., true);
        p.slopes = vec![0.5, 0.25, 0.125, 0.0625];
        p.sinks = vec![0.5, -1., 2., 0.];
        p.bias = (0..2 * 4 * 30 * 50).map(|_| format.round_f32(random.normal())).collect();
        p.mask = (0..2 * 4 * 30 * 50).map(|_| random.below(4) > 0).collect();
        let data = random_data(&p, 4);
        let [q, k, v] = &tensors(&p, &data, false)?;
        let mask: Vec<u8> = p.mask.iter().map(|&seen| 3 * u8::from(seen)).collect();
        let (out, lse) = Attention::new()
            .window(p.left, p.right)
            .chunk(p.chunk)
            .softcap(p.softcap)
            .top_left()
            .alibi_slopes(&Tensor::new(p.slopes.clone(), &device()?)?)
            .sinks(&Tensor::new(p.sinks.clone(), &device()?)?)
            .bias(&Tensor::from_slice(&p.bias, (2, 4, 30, 50), &device()?)?)
            .mask(&Tensor::from_slice(&mask, (2, 4, 30, 50), &device()?)?)
            .forward_with_lse(q, k, v)?;
        assert_eq!((out.dims(), lse.dims()), (&[2, 30, 4, 24][..], &[2, 4, 30][..]));
        expect_right(&p, &data, &out, Some(&lse))?;
    }
    Ok(())
}

#[test]
fn a_broadcast_mask_and_used_lengths_are_taken_as_they_lie() -> Result<()> {
    let mut p = Problem::new(Format::Bf16, &[(4, 50); 2], (4, 2), 32);
    p.used = vec![(4, 50), (4, 20)];
    let keys: Vec<u8> = (0..50).map(|j| u8::from(j % 3 > 0)).collect();
    p.mask = (0..2 * 4 * 4).flat_map(|_| keys.iter().map(|&seen| seen == 1)).collect();
    let data = random_data(&p, 5);
    let [q, k, v] = &tensors(&p, &data, false)?;
    let mask = Tensor::from_slice(&keys, (1, 1, 1, 50), &device()?)?.broadcast_as((2, 4, 4, 50))?;
    let used = Tensor::new(&[50u32, 20], &device()?)?;
    let (out, lse) = Attention::new().mask(&mask).seqused_k(&used).forward_with_lse(q, k, v)?;
    expect_right(&p, &data, &out, Some(&lse))
}

#[test]
fn parts_merge_to_the_whole() -> Result<()> {
    for &format in formats()? {
        let p = Problem::new(format, &[(9, 40); 2], (4, 2), 32);
        let data = random_data(&p, 6);
        let [q, k, v] = &tensors(&p, &data, false)?;
        let part = |from: usize, keys: usize| {
            Attention::new().forward_with_lse(q, &k.narrow(1, from, keys)?, &v.narrow(1, from, keys)?)
        };
        let (a, b, c) = (part(0, 15)?, part(15, 1)?, part(16, 24)?);
        let (out, lse) = merge(&[(&a.0, &a.1), (&b.0, &b.1), (&c.0, &c.1)])?;
        if format == Format::F32 {
            expect_right(&p, &data, &out, Some(&lse))?; // 16-bit parts are rounded, which 1.10 does not speak of
        }
        let whole = Attention::new().forward(q, k, v)?;
        let difference = (out.to_dtype(DType::F32)? - whole.to_dtype(DType::F32)?)?.abs()?.max_all()?;
        assert!(difference.to_scalar::<f32>()? < 2e-2, "{difference}");
    }
    expect_refusal(merge(&[]), &["parts"]);
    Ok(())
}

#[test]
fn empty_batches_and_sequences_give_what_there_is() -> Result<()> {
    // Of memory that is there: whether a GPU gives none is its driver's business.
    let zeros = |batch, rows, heads| Tensor::zeros((batch, 9, heads, 64), DType::BF16, &device()?)?.narrow(1, 0, rows);
    let none = v3::flash_attn(&zeros(2, 0, 4)?, &zeros(2, 5, 2)?, &zeros(2, 5, 2)?, 1., true, false)?;
    assert_eq!(none.dims(), &[2, 0, 4, 64]);
    let (out, lse) = Attention::new().forward_with_lse(&zeros(1, 3, 4)?, &zeros(1, 0, 2)?, &zeros(1, 0, 2)?)?;
    assert!(bits(&out)?.iter().all(|&x| x == 0));
    assert!(bits(&lse)?.iter().all(|&x| f32::from_bits(x) == f32::NEG_INFINITY));
    Ok(())
}

#[test]
fn what_cannot_be_done_exactly_is_refused_by_name() -> Result<()> {
    let device = device()?;
    let x = Tensor::zeros((1, 4, 4, 64), DType::BF16, &device)?;
    let lengths = Tensor::new(&[0u32, 4], &device)?;
    expect_refusal(v3::flash_attn(&x, &x, &x, f32::NAN, true, false), &["softmax_scale", "NaN"]);
    expect_refusal(v2::flash_attn_alibi_windowed_softcap(&x, &x, &x, None, 1., None, None, -2.), &["softcap", "-2"]);
    expect_refusal(v3::flash_attn_alibi(&x, &x, &x, &lengths, 1., true, false), &["alibi_slopes"]);
    expect_refusal(v3::flash_attn_varlen(&x, &x, &x, &lengths, &lengths, 4, 4, 1., true, false), &["q"]);
    expect_refusal(Attention::new().causal().window(None, Some(3)).forward(&x, &x, &x), &["causal", "right", "3"]);
    let double = x.to_dtype(DType::F64)?;
    expect_refusal(v3::flash_attn(&double, &double, &double, 1., true, false), &["q", "F64"]);
    let across = x.transpose(2, 3)?.contiguous()?.transpose(2, 3)?;
    expect_refusal(v3::flash_attn(&across, &x, &x, 1., true, false), &["q.stride[3]"]);
    let odd = Tensor::zeros((1, 4, 3, 64), DType::BF16, &device)?;
    expect_refusal(v3::flash_attn(&x, &odd, &odd, 1., true, false), &["4", "3", "multiple"]);
    if matches!(device, Device::Cpu) {
        let rows = x.squeeze(0)?;
        let beyond = Tensor::new(&[0u32, u32::MAX], &device)?;
        let long = Tensor::new(&[0u32, 5], &device)?;
        expect_refusal(v3::flash_attn_varlen(&rows, &rows, &rows, &long, &lengths, 4, 4, 1., true, false), &["5"]);
        expect_refusal(v3::flash_attn_varlen(&rows, &rows, &rows, &lengths, &beyond, 4, 4, 1., true, false), &["-1"]);
    }
    Ok(())
}
