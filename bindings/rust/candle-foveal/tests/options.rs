//! Options that candle's flash-attention crates have no name for, against float64 under the contract's tolerance: dropout,
//! used queries, lists of pages, e4m3, the result's type and a workspace; what is refused, and by which name.

mod problem;
mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_foveal::{Append, Attention, CacheLayout};
use problem::{
    bits, device, dtype, expect_refusal, expect_right, formats, is_cpu, seqlens, state, tensors, used, with_dropout,
    FORMS, STATE,
};
use support::random::Random;
use support::{random_data, Format, Problem};

#[test]
fn dropout_is_that_of_its_mask() -> Result<()> {
    for &format in formats()? {
        for (is_varlen, lengths) in FORMS {
            let mut p = Problem::new(format, &lengths, (4, 2), 32);
            (p.right, p.sinks) = (Some(0), vec![0.5, -1., 2., 0.]);
            with_dropout(&mut p, 0.25);
            let data = random_data(&p, 1);
            let [q, k, v] = &tensors(&p, &data, is_varlen)?;
            let mut attention = Attention::new().causal().sinks(&Tensor::new(p.sinks.clone(), &device()?)?);
            if is_varlen {
                let [lens_q, lens_k] = seqlens(&p)?;
                attention = attention.seqlens(&lens_q, &lens_k);
            }
            let state = state()?;
            let (out, lse) = attention.clone().dropout_state(0.25, &state).forward_with_lse(q, k, v)?;
            expect_right(&p, &data, &out, Some(&lse))?;
            if is_cpu()? {
                let by_numbers = attention.clone().dropout(0.25, STATE).forward(q, k, v)?;
                assert_eq!(bits(&by_numbers)?, bits(&out)?);
            }
            let none = attention.forward(q, k, v)?;
            assert_eq!(bits(&attention.dropout_state(0., &state).forward(q, k, v)?)?, bits(&none)?);
        }
    }
    Ok(())
}

#[test]
fn queries_that_are_not_used_get_zeros() -> Result<()> {
    for &format in formats()? {
        for (is_varlen, lengths) in FORMS {
            let mut p = Problem::new(format, &lengths, (4, 2), 32);
            (p.right, p.used) = (Some(0), vec![(17, 40), (30, 9)]);
            let data = random_data(&p, 2);
            let [q, k, v] = &tensors(&p, &data, is_varlen)?;
            let [used_q, used_k] = &used(&p)?;
            let mut attention = Attention::new().causal().seqused_q(used_q).seqused_k(used_k);
            if is_varlen {
                let [lens_q, lens_k] = seqlens(&p)?;
                attention = attention.seqlens(&lens_q, &lens_k);
            }
            let (out, lse) = attention.forward_with_lse(q, k, v)?;
            expect_right(&p, &data, &out, Some(&lse))?;
            // [h, total_q] and [total_q, h, d_v]
            let lse = if is_varlen { lse } else { lse.transpose(0, 1)?.flatten_from(1)? };
            let out = if is_varlen { out } else { out.flatten(0, 1)? };
            let mut first = 0;
            for (sequence, &(length, _)) in p.lengths.iter().enumerate() {
                let (unused, rest) = (first + p.used[sequence].0, length - p.used[sequence].0);
                if rest > 0 {
                    assert!(bits(&out.narrow(0, unused, rest)?)?.iter().all(|&x| x == 0));
                    let lse = bits(&lse.narrow(1, unused, rest)?)?;
                    assert!(lse.into_iter().all(|x| f32::from_bits(x) == f32::NEG_INFINITY));
                }
                first += length;
            }
        }
    }
    Ok(())
}

const PAGE: usize = 16;

/// Rows `[total_k, h_k, d]` in pages `[pages, PAGE, h_k, d]` of random order, whose unused rows are NaN; and the pages of
/// each sequence.
fn paged(p: &Problem, rows: &Tensor, seed: u64) -> Result<(Tensor, Vec<Vec<u32>>)> {
    let (_, heads, channels) = rows.dims3()?;
    let size = heads * channels;
    let values = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let count: usize = p.lengths.iter().map(|l| l.1.div_ceil(PAGE)).sum();
    let mut free: Vec<u32> = (0..count as u32 + 3).collect();
    let mut random = Random::new(seed);
    let (mut pool, mut first, mut pages) = (vec![f32::NAN; free.len() * PAGE * size], 0, vec![]);
    for &(_, length) in &p.lengths {
        let mut of_sequence = vec![];
        for keys in values[first * size..][..length * size].chunks(PAGE * size) {
            let page = free.swap_remove(random.below(free.len()));
            pool[page as usize * PAGE * size..][..keys.len()].copy_from_slice(keys);
            of_sequence.push(page);
        }
        pages.push(of_sequence);
        first += length;
    }
    let pool = Tensor::from_vec(pool, (count + 3, PAGE, heads, channels), &device()?)?;
    Ok((pool.to_dtype(rows.dtype())?, pages))
}

#[test]
fn pages_in_a_list_are_those_of_a_table() -> Result<()> {
    for &format in formats()? {
        let mut p = Problem::new(format, &[(3, 50), (1, 9), (5, 33)], (4, 2), 64);
        p.right = Some(0);
        let data = random_data(&p, 3);
        let [q, k, v] = &tensors(&p, &data, true)?;
        let ((k, pages), (v, _)) = (paged(&p, k, 4)?, paged(&p, v, 4)?);
        let lengths = Tensor::new(&[50u32, 9, 33], &device()?)?;
        let attention = Attention::new().causal().seqlens_q(&seqlens(&p)?[0]).seqused_k(&lengths);
        let (indptr, indices) = ([0u32, 4, 5, 8], pages.concat());
        let indices = Tensor::new(indices, &device()?)?;
        let listed = attention.clone().pages(&Tensor::new(&indptr, &device()?)?, &indices);
        let (out, lse) = listed.forward_with_lse(q, &k, &v)?;
        expect_right(&p, &data, &out, Some(&lse))?;
        let table: Vec<Vec<u32>> = pages.iter().map(|of| (0..4).map(|n| *of.get(n).unwrap_or(&0)).collect()).collect();
        let table = attention.clone().block_table(&Tensor::new(table, &device()?)?);
        assert_eq!(bits(&table.forward(q, &k, &v)?)?, bits(&out)?);
        let both = listed.clone().block_table(&Tensor::zeros((3, 4), DType::U32, &device()?)?);
        expect_refusal(both.forward(q, &k, &v), &["block_table", "page_ind"]);
        if is_cpu()? {
            let beyond = attention.pages(&Tensor::new(&indptr, &device()?)?, &(&indices + 99.)?);
            expect_refusal(beyond.forward(q, &k, &v), &["page_indices"]);
        }
    }
    Ok(())
}

/// Numbers of e4m3 near `x`, and what they are worth.
fn codes(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let codes = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_dtype(DType::F8E4M3)?;
    let values = codes.to_dtype(DType::F32)?;
    Ok((codes.to_device(x.device())?, values))
}

/// `[b, h]` as factors of `[b, s, h, d]`.
fn factors(descale: &Tensor) -> Result<Tensor> {
    descale.unsqueeze(1)?.unsqueeze(3)
}

/// Of four heads. Keys in e4m3 have the bits of dequantised ones in the same kernel, which on a GPU slopes of zero ask for.
fn dequantising() -> Result<Attention> {
    let attention = Attention::new();
    Ok(if is_cpu()? { attention } else { attention.alibi_slopes(&Tensor::zeros(4, DType::F32, &device()?)?) })
}

#[test]
fn keys_in_e4m3_are_the_dequantised_ones() -> Result<()> {
    for &format in formats()? {
        let p = Problem::new(format, &[(7, 50); 2], (4, 2), 32);
        let [q, k, v] = &tensors(&p, &random_data(&p, 5), false)?;
        let ((k, k_values), (v, v_values)) = (codes(k)?, codes(v)?);
        let k_descale = Tensor::new(&[[0.3f32, 0.7], [1.1, 0.9]], &device()?)?;
        let v_descale = Tensor::new(&[[2.3f32, 0.2]], &device()?)?.broadcast_as((2, 2))?;
        let dequantised = |values: &Tensor, descale: &Tensor| -> Result<Tensor> {
            let values = values.broadcast_mul(&factors(&descale.to_device(&Device::Cpu)?)?)?;
            values.to_dtype(dtype(format))?.to_device(q.device())
        };
        let attention = dequantising()?.causal();
        let expected =
            attention.forward(q, &dequantised(&k_values, &k_descale)?, &dequantised(&v_values, &v_descale)?)?;
        let out = attention.clone().k_descale(&k_descale).v_descale(&v_descale).forward(q, &k, &v)?;
        assert_eq!(out.dtype(), dtype(format));
        assert_eq!(bits(&out)?, bits(&expected)?);
        let plain = |t: &Tensor| t.to_dtype(dtype(format))?.to_device(q.device());
        let expected = attention.forward(q, &plain(&k_values)?, &plain(&v_values)?)?;
        assert_eq!(bits(&attention.forward(q, &k, &v)?)?, bits(&expected)?, "without descales");
        let of_rows = Tensor::full(0.5f32, (2, 50, 2), &device()?)?;
        let expected = attention.forward(q, &plain(&(k_values * 0.5)?)?, &plain(&v_values)?)?;
        assert_eq!(bits(&attention.k_descale(&of_rows).forward(q, &k, &v)?)?, bits(&expected)?, "each row's own");
    }
    Ok(())
}

#[test]
fn all_of_e4m3_is_attention_of_what_it_holds() -> Result<()> {
    for (out_dtype, format) in [(None, Format::Bf16), (Some(DType::F16), Format::F16)] {
        let mut p = Problem::new(format, &[(70, 90); 2], (4, 2), 64);
        p.right = Some(0);
        let mut data = random_data(&p, 6);
        let rows = tensors(&p, &data, false)?;
        let descales = [[[0.25f32, 2.], [1., 0.5]], [[1.5, 0.5], [1., 0.75]], [[2., 1.25], [0.5, 1.]]];
        let descales = [0, 1, 2].map(|n| Tensor::new(&descales[n], &device()?));
        let [q_descale, k_descale, v_descale] = &descales.map(|descale| descale.expect("memory"));
        let of_heads = |descale: &Tensor, heads: usize| -> Result<Tensor> {
            let each = descale.to_device(&Device::Cpu)?.unsqueeze(2)?.broadcast_as((2, 2, heads / 2))?;
            factors(&each.reshape((2, heads))?)
        };
        let held = |x: &Tensor, descale: &Tensor, heads: usize| -> Result<(Tensor, Vec<f32>)> {
            let (codes, worth) = codes(&x.contiguous()?)?;
            Ok((codes, worth.broadcast_mul(&of_heads(descale, heads)?)?.flatten_all()?.to_vec1::<f32>()?))
        };
        let (q, k, v);
        (q, data.q) = held(&rows[0], q_descale, 4)?;
        (k, data.k) = held(&rows[1], k_descale, 2)?;
        (v, data.v) = held(&rows[2], v_descale, 2)?;
        let mut attention = Attention::new().causal().q_descale(q_descale).k_descale(k_descale).v_descale(v_descale);
        if let Some(out_dtype) = out_dtype {
            attention = attention.out_dtype(out_dtype);
        }
        let out = attention.forward(&q, &k, &v)?;
        assert_eq!(out.dtype(), dtype(format));
        if is_cpu()? {
            expect_right(&p, &data, &out, None)?;
            continue;
        }
        // A GPU takes P in e4m3 for its second product (1.14), which the reference of 1.10 here does not.
        let cpu = |t: &Tensor| t.to_device(&Device::Cpu);
        let there = Attention::new().causal().q_descale(&cpu(q_descale)?).k_descale(&cpu(k_descale)?);
        let expected = there.v_descale(&cpu(v_descale)?).forward(&cpu(&q)?, &cpu(&k)?, &cpu(&v)?)?;
        let f32s = |t: &Tensor| cpu(t)?.to_dtype(DType::F32);
        let norm = |t: Tensor| t.sqr()?.sum_all()?.to_scalar::<f32>();
        let error = norm((f32s(&out)? - f32s(&expected)?)?)? / norm(f32s(&expected)?)?;
        assert!(error < 0.05 * 0.05, "{error}");
    }
    Ok(())
}

#[test]
fn a_cache_of_e4m3_is_written_and_read() -> Result<()> {
    let p = Problem::new(Format::Bf16, &[(1, 40)], (4, 2), 32);
    let [q, k, v] = &tensors(&p, &random_data(&p, 7), true)?;
    let caches = [0, 1].map(|_| Tensor::zeros((1, 40, 2, 32), DType::F8E4M3, &device()?));
    let [k_cache, v_cache] = caches.map(|cache| cache.expect("memory"));
    let scale = Tensor::new(&[0.0625f32, 0.125], &device()?)?;
    let append = Append::new(CacheLayout::Nhd)
        .slot_mapping(&Tensor::arange(0i64, 40, &device()?)?)
        .k_scale(&scale)
        .v_scale(&scale);
    append.write_k(k, &k_cache)?;
    append.write_v(v, &v_cache)?;
    let q = q.unsqueeze(0)?;
    let descale = scale.unsqueeze(0)?;
    let out = dequantising()?.k_descale(&descale).v_descale(&descale).forward(&q, &k_cache, &v_cache)?;
    // Where candle reads e4m3: it has no kernel for it on a GPU.
    let factors = factors(&descale.to_device(&Device::Cpu)?)?;
    let held = |cache: &Tensor| -> Result<Tensor> {
        let values = cache.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        values.broadcast_mul(&factors)?.to_dtype(DType::BF16)?.to_device(cache.device())
    };
    let (held_k, held_v) = (held(&k_cache)?, held(&v_cache)?);
    assert_eq!(bits(&out)?, bits(&dequantising()?.forward(&q, &held_k, &held_v)?)?);
    let error = ((held_k.to_dtype(DType::F32)?.squeeze(0)? - k.to_dtype(DType::F32)?)?.abs()?).max_all()?;
    assert!((1e-3..0.2).contains(&error.to_scalar::<f32>()?), "{error}"); // of numbers up to 4, to three bits
    Ok(())
}

#[test]
fn an_unrounded_result_rounds_to_the_rounded_one() -> Result<()> {
    for format in [Format::Bf16, Format::F16] {
        let p = Problem::new(format, &[(30, 50); 2], (4, 2), 64);
        let data = random_data(&p, 8);
        let [q, k, v] = &tensors(&p, &data, false)?;
        let (out, lse) = Attention::new().out_dtype(DType::F32).forward_with_lse(q, k, v)?;
        assert_eq!(out.dtype(), DType::F32);
        expect_right(&p, &data, &out, Some(&lse))?;
        let tracked = Var::from_tensor(q)?;
        let unrounded = Attention::new().out_dtype(DType::F32).forward(&tracked, k, v)?;
        expect_refusal(unrounded.sum_all()?.backward(), &["out.dtype is f32", "gradients"]);
        let rounded = Attention::new().forward(q, k, v)?;
        assert_ne!(bits(&out)?, bits(&rounded)?);
        if is_cpu()? {
            // A GPU may choose other tiles for it.
            assert_eq!(bits(&out.to_dtype(dtype(format))?)?, bits(&rounded)?);
        }
    }
    Ok(())
}

#[test]
fn a_workspace_on_the_cpu_changes_nothing() -> Result<()> {
    if !is_cpu()? {
        return Ok(()); // gpu.rs
    }
    let p = Problem::new(Format::F32, &[(1, 300)], (4, 2), 32);
    let [q, k, v] = &tensors(&p, &random_data(&p, 9), false)?;
    assert_eq!(Attention::new().workspace_bytes(q, k, v)?, 0);
    let out = bits(&Attention::new().forward(q, k, v)?)?;
    let with = |workspace: &Tensor| Attention::new().workspace(workspace).forward(q, k, v);
    let bytes = Tensor::full(3u8, 64, &Device::Cpu)?;
    assert_eq!(bits(&with(&Tensor::zeros(0, DType::U8, &Device::Cpu)?)?)?, out);
    assert_eq!(bits(&with(&bytes)?)?, out);
    assert_eq!(bytes.to_vec1::<u8>()?, [3; 64]);
    expect_refusal(with(&bytes.to_dtype(DType::F32)?), &["workspace", "F32", "U8"]);
    expect_refusal(with(&bytes.reshape((8, 8))?.t()?), &["workspace", "[1, 8]", "contiguous"]);
    let odd = Tensor::zeros((1, 300, 3, 32), DType::F32, &Device::Cpu)?;
    expect_refusal(Attention::new().workspace_bytes(q, &odd, &odd), &["4", "3", "multiple"]);
    Ok(())
}

#[test]
fn what_cannot_be_done_exactly_is_refused_by_name() -> Result<()> {
    let x = Tensor::zeros((1, 4, 4, 64), DType::BF16, &device()?)?;
    let one = Tensor::ones((1, 4), DType::F32, &device()?)?;
    let refused = |attention: Attention, words: &[&str]| expect_refusal(attention.forward(&x, &x, &x), words);
    refused(Attention::new().q_descale(&one), &["q_descale"]);
    refused(Attention::new().k_descale(&one), &["k_descale"]);
    refused(Attention::new().v_descale(&one), &["v_descale"]);
    refused(Attention::new().out_dtype(DType::F64), &["out_dtype", "F64"]);
    refused(Attention::new().out_dtype(DType::F16), &["out"]);
    refused(Attention::new().seqused_q(&one), &["seqused_q"]);
    refused(Attention::new().pages(&one, &one), &["seqused_k", "page_indices"]);
    refused(Attention::new().dropout_state(0.5, &one), &["dropout_state", "i64 [2]"]);
    let state = state()?;
    if !is_cpu()? {
        refused(Attention::new().dropout(0.5, STATE), &["dropout_state", "host memory"]);
        refused(Attention::new().dropout_state(0.5, &state.to_device(&Device::Cpu)?), &["dropout_state", "device"]);
        return Ok(());
    }
    for p in [1., -0.5, f32::NAN] {
        refused(Attention::new().dropout(p, STATE), &["dropout_p"]);
        refused(Attention::new().dropout_state(p, &state), &["dropout_p"]);
    }
    refused(Attention::new().seqused_q(&Tensor::new(&[5u32], &device()?)?), &["seqused_q", "5"]);
    Ok(())
}
