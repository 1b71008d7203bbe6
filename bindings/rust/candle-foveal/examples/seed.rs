//! Microseconds a forward through candle on the first GPU: the four problems of candle-flash-attn-v3's pull request
//! (huggingface/candle 3597), beside what was published there of another H200.
//!
//! `cargo run --release --features cuda --example seed`

use std::time::Instant;

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::candle_flash_attn_v3::flash_attn;

const WARM_UP_S: f32 = 0.5;
const ROUNDS: usize = 15;

/// [128, s, heads, 128], random normal, a few sequences at a time: candle's kernels take no more than 2³² elements.
fn random(device: &Device, s: usize, heads: usize) -> Result<Tensor> {
    let all = Tensor::zeros((128, s, heads, 128), DType::BF16, device)?;
    for b in (0..128).step_by(4) {
        let some = Tensor::randn(0f32, 1., (4, s, heads, 128), device)?.to_dtype(DType::BF16)?;
        all.slice_set(&some, 0, b)?;
    }
    Ok(all)
}

/// The median over rounds of calls that follow each other on the stream, by its events: a model does not wait for the GPU
/// after each layer either. (Where the host waits, the stream's memory pool gives a result's memory back, up to 8.6 GB here,
/// and the next call maps it again.)
fn forward_us(device: &Device, s: usize) -> Result<f32> {
    let (q, k, v) = (random(device, s, 32)?, random(device, s, 8)?, random(device, s, 8)?);
    let call = || flash_attn(&q, &k, &v, 1. / 128f32.sqrt(), true, true);
    let calls = (40_000 / s).clamp(3, 200);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f32() < WARM_UP_S {
        call()?;
        device.synchronize()?;
    }
    let stream = device.as_cuda_device()?.cuda_stream();
    let event = || stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(candle_core::Error::wrap);
    let mut events = vec![event()?];
    for _ in 0..ROUNDS {
        for _ in 0..calls {
            call()?;
        }
        events.push(event()?);
    }
    let mut rounds = Vec::new();
    for round in events.windows(2) {
        let ms = round[0].elapsed_ms(&round[1]).map_err(candle_core::Error::wrap)?;
        rounds.push(ms * 1e3 / calls as f32);
    }
    rounds.sort_by(f32::total_cmp);
    Ok(rounds[ROUNDS / 2])
}

/// Host time of one call while the GPU is busy with the earlier ones.
fn host_us(device: &Device) -> Result<f32> {
    let x = Tensor::zeros((1, 64, 1, 128), DType::BF16, device)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        device.synchronize()?;
        let begin = Instant::now();
        for _ in 0..200 {
            flash_attn(&x, &x, &x, 1., true, true)?;
        }
        rounds.push(begin.elapsed().as_secs_f32() * 1e6 / 200.);
    }
    rounds.sort_by(f32::total_cmp);
    Ok(rounds[ROUNDS / 2])
}

fn main() -> Result<()> {
    let device = Device::new_cuda_with_stream(0)?;
    println!("b128 hq32 hk8 d128 causal bf16, microseconds a forward");
    println!("| s | candle-foveal | candle-flash-attn-v3 after 3597, as published of another H200 |");
    println!("|---|---|---|");
    for (s, published) in [(128, 302), (1024, 2201), (2048, 6971), (8192, 94020)] {
        println!("| {s} | {:.1} | {published} |", forward_us(&device, s)?);
    }
    println!("host time of a call: {:.2} microseconds", host_us(&device)?);
    Ok(())
}
