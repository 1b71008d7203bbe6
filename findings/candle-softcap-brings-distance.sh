#!/bin/sh
# Candle's attention on the CPU, decoding with a softcap in f32, adds each key's distance to its score, as ALiBi of slope 1 does.
#
# Versions:  candle-core and candle-nn 0.11.1 (crates.io), the current release; Rust 1.95.0. Seen on 2026-12-01.
# Input:     candle_nn::attention::flash_attn, AttnMask::causal_with_offset(), max_bias None, softcap 50, two heads of 16 on 8 keys:
#            a prompt of 8 queries, and the last of them alone on the same keys. In f32 and f16, beside attention in f64. Then a
#            query of zeros, V the unit matrix, so that the output is the weights.
# Behaviour: the last query in the prompt agrees with f64, in f32 and f16, and so it does alone in f16. Alone in f32 it is off
#            by 0.94. A query of zeros shows why: the weights are not 1/8 each but, from key 0 to 7,
#
#              0.0006 0.0016 0.0043 0.012 0.031 0.086 0.23 0.63
#
#            which are those of scores -7 to 0: the slope is a power of 2 of -max_bias, and that is 1 where ALiBi is off. Without
#            a softcap another function runs, and is right. So a model with a softcap reads its prompt rightly and then sees, at
#            every generated token, hardly more than the last few keys; no error, no warning.
#
# Needs cargo and crates.io. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src"
cat >"$scratch/Cargo.toml" <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
candle-core = "=0.11.1"
candle-nn = "=0.11.1"
half = "2.7.1"
END
cat >"$scratch/src/main.rs" <<'END'
use candle_core::{DType, Device::Cpu, Result, Tensor};
use candle_nn::attention::{flash_attn, AttnMask};

const KEYS: usize = 8;
const HEADS: usize = 2;
const DIM: usize = 16;
const SOFTCAP: f64 = 50.0;

/// The last query's output, of a call of that query alone or of all of them.
fn last(q: &Tensor, k: &Tensor, v: &Tensor, dtype: DType, alone: bool) -> Result<Vec<f32>> {
    let q = if alone { q.narrow(1, KEYS - 1, 1)? } else { q.clone() }.to_dtype(dtype)?;
    let (k, v) = (k.to_dtype(dtype)?, v.to_dtype(dtype)?);
    let mask = AttnMask::causal_with_offset(if alone { KEYS - 1 } else { 0 });
    let softcap = Some(SOFTCAP as f32);
    let out = match dtype {
        DType::F32 => flash_attn::<f32>(&q, &k, &v, 0.25, mask, None, softcap)?,
        _ => flash_attn::<half::f16>(&q, &k, &v, 0.25, mask, None, softcap)?,
    };
    let out = out.to_dtype(DType::F32)?;
    out.narrow(2, out.dim(2)? - 1, 1)?.flatten_all()?.to_vec1()
}

fn expected(q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let row = |x: usize, h: usize| (x * HEADS + h) * DIM..(x * HEADS + h + 1) * DIM;
    let mut out = vec![];
    for h in 0..HEADS {
        let score = |key: usize| -> f64 {
            let products = q[row(KEYS - 1, h)].iter().zip(&k[row(key, h)]).map(|(a, b)| *a as f64 * *b as f64);
            SOFTCAP * (0.25 * products.sum::<f64>() / SOFTCAP).tanh()
        };
        let weights: Vec<f64> = (0..KEYS).map(|key| score(key).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..DIM {
            out.push((0..KEYS).map(|key| weights[key] / sum * v[row(key, h).start + d] as f64).sum::<f64>() as f32);
        }
    }
    out
}

fn main() -> Result<()> {
    let numbers = |seed: usize| -> Vec<f32> {
        (0..KEYS * HEADS * DIM).map(|i| ((i * i + 7 * i * seed + seed) as f32).sin()).collect()
    };
    let (q, k, v) = (numbers(1), numbers(2), numbers(3));
    let right = expected(&q, &k, &v);
    let tensor = |x: &[f32]| Tensor::from_slice(x, (1, KEYS, HEADS, DIM), &Cpu);
    let (q, k, v) = (tensor(&q)?, tensor(&k)?, tensor(&v)?);
    let mut same = true;
    for (dtype, alone, agrees) in
        [(DType::F32, false, true), (DType::F16, false, true), (DType::F16, true, true), (DType::F32, true, false)]
    {
        let out = last(&q, &k, &v, dtype, alone)?;
        let off = out.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("the last query {}, {dtype:?}: off by {off:.2}", if alone { "alone" } else { "in the prompt" });
        same &= if agrees { off < 3e-3 } else { off > 0.3 };
    }
    let unit = Tensor::eye(DIM, DType::F32, &Cpu)?.narrow(0, 0, KEYS)?.reshape((1, KEYS, 1, DIM))?;
    let weights = last(&q.zeros_like()?, &k, &unit.repeat((1, 1, HEADS, 1))?, DType::F32, true)?;
    println!("weights of a query of zeros: {:?}", &weights[..KEYS]);
    let sum: f32 = (0..KEYS).map(|distance| (-(distance as f32)).exp()).sum();
    for key in 0..KEYS {
        same &= (weights[key] - (key as f32 - (KEYS - 1) as f32).exp() / sum).abs() < 1e-5;
    }
    std::process::exit(!same as i32);
}
END
(cd "$scratch" && cargo build -q) >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot build the program"; exit 1; }
"$scratch/target/debug/finding" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: a softcap brings a bias by distance to a query alone in f32"
