#!/bin/sh
# Candle's attention on the CPU gives a batch of one other keys, another bias and another type than each of a batch of two.
#
# Versions:  candle-core and candle-nn 0.11.1 (crates.io), the current release; Rust 1.95.0. Seen on 2026-12-01.
# Input:     candle_nn::attention::flash_attn of queries of zeros, V the unit matrix, so that the output is the weights; once as it
#            is, once with the same tensors twice in the batch: two queries on four keys, AttnMask::causal(); two queries on a cache
#            of six keys, AttnMask::causal_with_offset(2); no mask and max_bias 4 for two heads; all in f16.
# Behaviour: both halves of the batch of two are equal, and other than the batch of one:
#
#                                      batch of one         batch of two
#              causal()                keys 0; 0 to 1       keys 0 to 2; 0 to 3
#              causal_with_offset(2)   keys 0 to 2; 0 to 3  keys 0 to 4; 0 to 5
#              no mask, max_bias 4     weights of 1/4       ALiBi's: 0.35 0.27 0.21 0.17 for query 0
#              type of the output      f32                  f16
#
#            One of these kernels counts from the offset, the other from the ends of queries and keys, and does not read the offset;
#            without a mask only the latter knows ALiBi. So a chunk of a prompt, or a cache longer than what is in it, is right
#            for one sequence and reads ahead for two. No error, no warning; a softcap with two is an error.
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

const HEADS: usize = 2;

/// The weights of the first head's queries, of the batch's first entry, and the output's type.
fn weights(
    batch: usize,
    queries: usize,
    keys: usize,
    mask: &AttnMask,
    max_bias: Option<f32>,
) -> Result<(Vec<Vec<f32>>, DType)> {
    let q = Tensor::zeros((batch, queries, HEADS, keys), DType::F16, &Cpu)?;
    let k = Tensor::zeros((batch, keys, HEADS, keys), DType::F16, &Cpu)?;
    let v = Tensor::eye(keys, DType::F16, &Cpu)?.reshape((1, keys, 1, keys))?.repeat((batch, 1, HEADS, 1))?;
    let out = flash_attn::<half::f16>(&q, &k, &v, 1.0, mask.clone(), max_bias, None)?;
    let dtype = out.dtype();
    let of = |entry: usize| out.get(entry)?.get(0)?.to_dtype(DType::F32)?.to_vec2::<f32>();
    assert_eq!(of(0)?, of(batch - 1)?);
    Ok((of(0)?, dtype))
}

fn main() -> Result<()> {
    let mut same = true;
    // The mask's name, itself, the number of keys, and how many of them the first query sees in a batch of one and of two.
    for (name, mask, keys, one, two) in [
        ("causal()", AttnMask::causal(), 4, 1, 3),
        ("causal_with_offset(2)", AttnMask::causal_with_offset(2), 6, 3, 5),
    ] {
        for (batch, sees) in [(1, one), (2, two)] {
            let (rows, dtype) = weights(batch, 2, keys, &mask, None)?;
            println!("{name}, {keys} keys, batch of {batch}: {rows:.2?}, {dtype:?}");
            for (query, row) in rows.iter().enumerate() {
                let seen = sees + query;
                same &= row[..seen].iter().all(|w| (w * seen as f32 - 1.0).abs() < 2e-3);
                same &= row[seen..].iter().all(|w| *w == 0.0);
            }
            same &= dtype == if batch == 1 { DType::F32 } else { DType::F16 };
        }
    }
    for batch in [1, 2] {
        let (rows, _) = weights(batch, 4, 4, &AttnMask::None, Some(4.0))?;
        println!("no mask, max_bias 4, batch of {batch}: {rows:.2?}");
        for (query, row) in rows.iter().enumerate() {
            let slope = if batch == 1 { 0.0 } else { 2f64.powi(-2) };
            let biased: Vec<f64> = (0..4).map(|key| (-slope * (key as f64 - query as f64).abs()).exp()).collect();
            let sum: f64 = biased.iter().sum();
            same &= row.iter().zip(&biased).all(|(w, b)| (*w as f64 - b / sum).abs() < 2e-4);
        }
    }
    std::process::exit(!same as i32);
}
END
(cd "$scratch" && cargo build -q) >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot build the program"; exit 1; }
"$scratch/target/debug/finding" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: a batch of one is other attention than a batch of two"
