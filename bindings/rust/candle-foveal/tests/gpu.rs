//! What is to be seen on a GPU alone: ragged batches that once never ended, and memory that is as before. With the feature
//! `cuda` and FOVEAL_TEST_CUDA=1.
#![cfg(feature = "cuda")]

mod problem;
mod support;

use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::candle_flash_attn_v3::{flash_attn, flash_attn_varlen};
use problem::{device, seqlens, tensors};
use support::random::Random;
use support::{random_data, Data, Errors, Format, Problem};

fn gpu() -> Result<Option<Device>> {
    let device = device()?;
    if matches!(device, Device::Cpu) {
        println!("SKIPPED: FOVEAL_TEST_CUDA is not set");
        return Ok(None);
    }
    Ok(Some(device))
}

/// A causal call of varlen, its rows added to `errors` where they are chosen.
fn collect(p: &Problem, data: &Data, errors: &mut Errors, chosen: impl Fn(usize, usize, usize) -> bool) -> Result<()> {
    let [q, k, v] = tensors(p, data, true)?;
    let [lens_q, lens_k] = seqlens(p)?;
    let scale = 1. / (p.d as f32).sqrt();
    let out = flash_attn_varlen(&q, &k, &v, &lens_q, &lens_k, 0, 0, scale, true, false)?;
    let out = out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    errors.collect(p, data, &out, &[], chosen).unwrap_or_else(|failure| panic!("{failure}\n{p:?}"));
    Ok(())
}

#[test]
fn a_ragged_causal_batch_of_a_server_is_right() -> Result<()> {
    if gpu()?.is_none() {
        return Ok(());
    }
    // candle's issue 3603: two sequences of 1743 and 1559 tokens, which its FlashAttention-3 crate never ends.
    let mut p = Problem::new(Format::Bf16, &[(1743, 1743), (1559, 1559)], (32, 8), 128);
    p.right = Some(0);
    let mut errors = Errors::default();
    collect(&p, &random_data(&p, 4), &mut errors, |_, head, row| head % 11 == 3 && (row % 61 == 0 || row > 1738))?;
    errors.verdict().unwrap_or_else(|failure| panic!("{failure}"));
    Ok(())
}

#[test]
fn two_hundred_random_ragged_batches_are_right() -> Result<()> {
    if gpu()?.is_none() {
        return Ok(());
    }
    let mut random = Random::new(5);
    let formats = [Format::Bf16, Format::F16];
    let mut errors = formats.map(|_| Errors::default());
    for n in 0..200 {
        let lengths: Vec<_> = (0..1 + random.below(8)).map(|_| (random.below(300), random.below(300))).collect();
        let heads_k = 1 + random.below(2);
        let heads = (heads_k * (1 + random.below(4)), heads_k);
        let mut p = Problem::new(formats[n % 2], &lengths, heads, [32, 64, 128][random.below(3)]);
        p.right = Some(0);
        collect(&p, &random_data(&p, n as u64), &mut errors[n % 2], |_, head, row| (row + head) % 37 == 0)?;
    }
    errors.iter().for_each(|errors| errors.verdict().unwrap_or_else(|failure| panic!("{failure}")));
    Ok(())
}

#[test]
fn a_thousand_calls_leave_the_memory_as_it_was() -> Result<()> {
    let Some(device) = gpu()? else { return Ok(()) };
    let stream = device.as_cuda_device()?.cuda_stream();
    let random = |heads: usize| Tensor::randn(0f32, 1., (4, 512, heads, 128), &device)?.to_dtype(DType::BF16);
    let (q, k, v) = (random(32)?, random(8)?, random(8)?);
    let free = || -> Result<usize> {
        device.synchronize()?;
        Ok(stream.context().mem_get_info().map_err(candle_core::Error::wrap)?.0)
    };
    for _ in 0..3 {
        flash_attn(&q, &k, &v, 0.1, true, true)?; // the module is loaded, candle's pool has the output's size
    }
    let before = free()?;
    for _ in 0..1000 {
        flash_attn(&q, &k, &v, 0.1, true, true)?;
    }
    assert_eq!(free()?, before, "free bytes of the device after and before");
    Ok(())
}
