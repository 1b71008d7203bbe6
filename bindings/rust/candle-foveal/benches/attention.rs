//! candle-foveal beside candle's own operations on the CPU (what candle's models do without flash attention), and what
//! a call through candle adds to one through `foveal`: `cargo bench`.

use std::hint::black_box;

use candle_core::{DType, Device, Result, Tensor, D};
use candle_foveal::candle_flash_attn_v3::flash_attn;
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};

/// q [b, h, s, d], k and v [b, h_k, s, d]: repeated for grouped heads, masked, softmax.
fn candle_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let group = q.dim(1)? / k.dim(1)?;
    let k = candle_transformers::utils::repeat_kv(k.clone(), group)?;
    let v = candle_transformers::utils::repeat_kv(v.clone(), group)?;
    let scores = (q.matmul(&k.t()?)? / (q.dim(D::Minus1)? as f64).sqrt())?.broadcast_add(mask)?;
    candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)
}

fn beside_candle(c: &mut Criterion) {
    let mut group = c.benchmark_group("causal, b1 hq8 hk2 d64 f32");
    group.sample_size(10);
    for s in [128usize, 512, 1024] {
        let random = |h: usize| Tensor::randn(0f32, 1., (1, h, s, 64), &Device::Cpu).expect("memory");
        let (q, k, v) = (random(8), random(2), random(2));
        let seen = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0. };
        let mask: Vec<f32> = (0..s * s).map(|n| seen(n / s, n % s)).collect();
        let mask = Tensor::from_vec(mask, (s, s), &Device::Cpu).expect("memory");
        group.bench_function(BenchmarkId::new("candle", s), |b| {
            b.iter(|| candle_attention(black_box(&q), &k, &v, &mask).expect("a result"))
        });
        group.bench_function(BenchmarkId::new("foveal", s), |b| {
            b.iter(|| {
                let [q, k, v] = [&q, &k, &v].map(|x| x.transpose(1, 2).expect("four dimensions"));
                flash_attn(black_box(&q), &k, &v, 0.125, true, false).expect("a result")
            })
        });
    }
}

fn overhead(c: &mut Criterion) {
    let mut group = c.benchmark_group("one query, one key, d 8");
    let data = [0.5f32; 8];
    let mut out = [0f32; 8];
    let shape = [1usize, 1, 1, 8];
    group.bench_function("foveal-sys", |b| {
        let view = foveal_sys::foveal_tensor {
            data: data.as_ptr().cast_mut().cast(),
            dtype: foveal_sys::FOVEAL_F32,
            rank: 4,
            shape: [1, 1, 1, 8],
            stride: [8, 8, 8, 1],
        };
        let mut out_view = view;
        out_view.data = out.as_mut_ptr().cast();
        b.iter(|| {
            let mut args = foveal_sys::foveal_forward_args::new();
            args.backend = foveal_sys::FOVEAL_BACKEND_CPU;
            (args.q, args.k, args.v, args.out) = (view, view, view, out_view);
            // SAFETY: the views are of arrays that live here, in their size.
            assert_eq!(unsafe { foveal_sys::foveal_forward(black_box(&args), std::ptr::null_mut()) }, 0);
        })
    });
    group.bench_function("foveal", |b| {
        b.iter(|| {
            let input = foveal::Tensor::new(black_box(&data), &shape).expect("a view");
            let out = foveal::TensorMut::new(&mut out, &shape).expect("a view");
            foveal::Forward::new(input, input, input, out).run(foveal::Stream::none()).expect("a result")
        })
    });
    group.bench_function("candle-foveal", |b| {
        let x = Tensor::zeros((1, 1, 1, 8), DType::F32, &Device::Cpu).expect("memory");
        b.iter(|| flash_attn(black_box(&x), &x, &x, 1., false, false).expect("a result"))
    });
}

criterion_group!(benches, beside_candle, overhead);
criterion_main!(benches);
