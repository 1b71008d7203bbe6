//! What is to be seen on a GPU alone: ragged batches that once never ended, memory that is as before, threads and devices.
//! With the feature `cuda` and FOVEAL_TEST_CUDA=1.
#![cfg(feature = "cuda")]

mod problem;
mod support;

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::candle_flash_attn_v3::{flash_attn, flash_attn_varlen};
use candle_foveal::{reshape_and_cache, Append, Attention, CacheLayout};
use problem::{device, expect_refusal, expect_right, seqlens, tensors};
use support::random::Random;
use support::{random_data, Data, Errors, Format, Problem};

/// The GPU, for one test at a time: one of them looks at its memory.
fn gpu() -> Result<Option<(Device, MutexGuard<'static, ()>)>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let device = device()?;
    if matches!(device, Device::Cpu) {
        println!("SKIPPED: FOVEAL_TEST_CUDA is not set");
        return Ok(None);
    }
    Ok(Some((device, ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))))
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
    let Some(_alone) = gpu()? else { return Ok(()) };
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
    let Some(_alone) = gpu()? else { return Ok(()) };
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
    let Some((device, _alone)) = gpu()? else { return Ok(()) };
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

/// A thread of its own has no current device until it is given one, and writing to a cache allocates nothing that would.
#[test]
fn a_new_thread_writes_a_cache() -> Result<()> {
    let Some((device, _alone)) = gpu()? else { return Ok(()) };
    let rows = Tensor::ones((2, 2, 8), DType::BF16, &device)?;
    let caches = [0, 1].map(|_| Tensor::zeros((3, 4, 2, 8), DType::BF16, &device));
    let [k_cache, v_cache] = [caches[0].as_ref(), caches[1].as_ref()].map(|cache| cache.expect("memory"));
    let slots = Tensor::new(&[7i64, 0], &device)?;
    device.synchronize()?; // candle's default stream is each thread's own
    std::thread::scope(|scope| {
        let write = || {
            reshape_and_cache(&rows, &rows, k_cache, v_cache, &slots, CacheLayout::Nhd)?;
            device.synchronize()
        };
        scope.spawn(write).join().expect("no panic")
    })?;
    for cache in [k_cache, v_cache] {
        let sums = cache.to_dtype(DType::F32)?.sum((2, 3))?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(sums, [16., 0., 0., 0., 0., 0., 0., 16., 0., 0., 0., 0.]);
    }
    Ok(())
}

/// Of one long sequence a CTA per head decodes all without a workspace, and all of the GPU with one.
#[test]
fn decoding_is_split_by_a_workspace_of_the_callers() -> Result<()> {
    let Some((device, _alone)) = gpu()? else { return Ok(()) };
    let attention = Attention::new();
    let problem = |keys: usize| Problem::new(Format::Bf16, &[(1, keys)], (8, 2), 128);
    let data = [5000, 700].map(|keys| (problem(keys), random_data(&problem(keys), keys as u64)));
    let [q, k, v] = tensors(&data[0].0, &data[0].1, false)?;
    let bytes = attention.workspace_bytes(&q, &k, &v)?;
    assert!(bytes > 0);
    let workspace = Tensor::zeros(bytes, DType::U8, &device)?;
    let split = attention.clone().workspace(&workspace);
    let bits = |out: &Tensor| out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    for (p, data) in &data {
        let [q, k, v] = tensors(p, data, false)?;
        let (out, lse) = split.forward_with_lse(&q, &k, &v)?;
        expect_right(p, data, &out, Some(&lse))?;
        assert!(bits(&split.forward(&q, &k, &v)?)? == bits(&out)?, "a second call differs");
        expect_right(p, data, &attention.forward(&q, &k, &v)?, None)?;
    }
    let with = |workspace: &Tensor| attention.clone().workspace(workspace).forward(&q, &k, &v);
    expect_refusal(with(&workspace.narrow(0, 0, 16)?), &["workspace"]);
    expect_refusal(with(&workspace.narrow(0, 1, bytes - 1)?), &["workspace", "16"]);
    expect_refusal(with(&Tensor::zeros(bytes, DType::U8, &Device::Cpu)?), &["workspace", "another device"]);
    let rows = Tensor::zeros((1, 512, 8, 128), DType::BF16, &device)?;
    assert_eq!(attention.workspace_bytes(&rows, &rows, &rows)?, 0);
    Ok(())
}

#[test]
fn what_lies_in_host_memory_is_refused_by_name() -> Result<()> {
    let Some((device, _alone)) = gpu()? else { return Ok(()) };
    let x = Tensor::zeros((1, 4, 4, 64), DType::BF16, &device)?;
    let sinks = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
    expect_refusal(Attention::new().sinks(&sinks).forward(&x, &x, &x), &["sinks", "another device"]);
    let rows = Tensor::zeros((4, 4, 64), DType::BF16, &device)?;
    let lengths = Tensor::new(&[0u32, 4], &Device::Cpu)?;
    let varlen = flash_attn_varlen(&rows, &rows, &rows, &lengths, &lengths, 4, 4, 1., true, false);
    expect_refusal(varlen, &["seqlens_q", "another device"]);
    Ok(())
}

/// Each tensor's own GPU counts, whichever the thread used last.
#[test]
fn two_gpus_are_kept_apart() -> Result<()> {
    let Some((first, _alone)) = gpu()? else { return Ok(()) };
    let Ok(second) = Device::new_cuda(1) else {
        println!("SKIPPED: there is one GPU");
        return Ok(());
    };
    let rows = Tensor::ones((1, 4, 2, 64), DType::BF16, &first)?;
    let cache = Tensor::zeros((1, 4, 2, 64), DType::BF16, &first)?;
    let slots = Tensor::new(&[[0i64, 1, 2, 3]], &first)?;
    first.synchronize()?;
    let sinks = Tensor::zeros(2, DType::F32, &second)?; // on this thread it is the current one now
    Append::new(CacheLayout::Nhd).slot_mapping(&slots).write_k(&rows, &cache)?;
    assert_eq!(cache.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?, 512.);
    expect_refusal(Attention::new().sinks(&sinks).forward(&rows, &rows, &rows), &["sinks", "gpu_id: 1", "gpu_id: 0"]);
    Ok(())
}
