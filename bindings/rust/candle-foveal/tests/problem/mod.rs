//! Problems of the contract's reference as tensors of candle's.

#![allow(dead_code)] // each test takes what it needs

use std::sync::OnceLock;

use candle_core::{DType, Device, Result, Tensor, D};

use crate::support::{judge, Data, Format, Problem, FORMATS};

/// The CPU, or with FOVEAL_TEST_CUDA=1 and the feature `cuda` the first GPU.
pub fn device() -> Result<Device> {
    static GPU: OnceLock<Device> = OnceLock::new();
    if !cfg!(feature = "cuda") || std::env::var_os("FOVEAL_TEST_CUDA").is_none() {
        return Ok(Device::Cpu);
    }
    if GPU.get().is_none() {
        let _ = GPU.set(Device::new_cuda(0)?); // another test's thread may have been faster
    }
    Ok(GPU.get().cloned().expect("it was set"))
}

/// The formats that the device computes in: a GPU has no f32.
pub fn formats() -> Result<&'static [Format]> {
    Ok(if matches!(device()?, Device::Cpu) { &FORMATS } else { &[Format::Bf16, Format::F16] })
}

/// Dense and varlen: is it, and each sequence's queries and keys.
pub const FORMS: [(bool, [(usize, usize); 2]); 2] = [(false, [(30, 50); 2]), (true, [(30, 50), (41, 9)])];

/// The numbers that a tensor holds, of any type, by their bits as f32.
pub fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// Seed and offset of dropout.
pub const STATE: [u64; 2] = [u64::MAX - 3, 1 << 40];

/// The same on the device, where a GPU wants it.
pub fn state() -> Result<Tensor> {
    Tensor::new(&STATE.map(|number| number as i64), &device()?)
}

/// The problem under dropout of this state: its mask is the library's (1.16), which its own tests hold against Philox.
pub fn with_dropout(p: &mut Problem, dropout_p: f32) {
    let (s_q, s_k) = p.most();
    let sizes = [p.lengths.len(), p.heads_q, s_q, s_k];
    let mut kept = vec![7u8; sizes.iter().product()];
    let [b, h, s_q, s_k] = sizes.map(|size| size as i64);
    // SAFETY: the state has two numbers, and the mask as many bytes as it says.
    let status =
        unsafe { foveal_sys::foveal_dropout_mask(b, h, s_q, s_k, dropout_p, STATE.as_ptr(), kept.as_mut_ptr()) };
    assert_eq!(status, foveal_sys::FOVEAL_OK);
    (p.dropout_p, p.kept) = (dropout_p, kept.into_iter().map(|byte| byte == 1).collect());
}

pub fn is_cpu() -> Result<bool> {
    Ok(matches!(device()?, Device::Cpu))
}

/// The used lengths of a problem's queries and keys.
pub fn used(p: &Problem) -> Result<[Tensor; 2]> {
    let lengths = |of: fn(&(usize, usize)) -> usize| {
        Tensor::new(p.used.iter().map(|used| of(used) as u32).collect::<Vec<_>>(), &device()?)
    };
    Ok([lengths(|used| used.0)?, lengths(|used| used.1)?])
}

/// 0, 1, 2, ... in f16 and of this shape, divided by each of the three.
pub fn counted(shape: &[usize], divisors: [f64; 3]) -> Result<[Tensor; 3]> {
    let count = shape.iter().product::<usize>() as u32;
    let numbers = Tensor::arange(0u32, count, &device()?)?.to_dtype(DType::F16)?.reshape(shape)?;
    Ok([(&numbers / divisors[0])?, (&numbers / divisors[1])?, (&numbers / divisors[2])?])
}

/// Attention by candle's own operations in f32: q, k, v [.., s, d] of as many heads each.
pub fn textbook(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let [q, k, v] = [q.to_dtype(DType::F32)?, k.to_dtype(DType::F32)?, v.to_dtype(DType::F32)?];
    let scores = (q.contiguous()?.matmul(&k.transpose(D::Minus1, D::Minus2)?.contiguous()?)? * scale)?;
    candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v.contiguous()?)
}

/// The textbook's bits; on a GPU within one unit in the last place of f16. candle's tests allow 1e-5 there as well, which
/// is less than that unit: flash-attn-v3 has these bits as it divides by the sum of unrounded weights, while foveal's
/// kernels of d up to 64 divide by that of the rounded ones that multiply V (shared numerator and denominator).
pub fn expect_textbook(out: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<()> {
    let values = |t: &Tensor| t.to_dtype(DType::F16)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    for (got, exact) in values(out)?.into_iter().zip(values(&textbook(q, k, v, scale)?)?) {
        let limit = if is_cpu()? { 1e-5 } else { 2f32.powi(exact.log2().floor() as i32 - 10) };
        assert!((got - exact).abs() <= limit, "{got}, expected {exact}");
    }
    Ok(())
}

/// Equal up to the rounding of four digits and one unit in the last place of f16.
pub fn expect_literals(out: &Tensor, shape: &[usize], literals: &[f32]) -> Result<()> {
    assert_eq!(out.dims(), shape);
    let out = out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(out.len(), literals.len());
    for (n, (&got, &literal)) in out.iter().zip(literals).enumerate() {
        let unit = 2f32.powi(got.log2().floor() as i32 - 10);
        assert!((got - literal).abs() <= 0.5e-4 + unit, "element {n}: {got}, expected {literal}");
    }
    Ok(())
}

pub fn dtype(format: Format) -> DType {
    match format {
        Format::F32 => DType::F32,
        Format::Bf16 => DType::BF16,
        Format::F16 => DType::F16,
    }
}

/// q, k, v of a problem: varlen `[total, h, d]`, else `[b, s, h, d]` as a view of `[b, h, s, d]`.
pub fn tensors(p: &Problem, data: &Data, varlen: bool) -> Result<[Tensor; 3]> {
    let tensor = |values: &[f32], rows: usize, heads: usize, channels: usize| -> Result<Tensor> {
        if varlen {
            return Tensor::from_slice(values, (rows, heads, channels), &device()?)?.to_dtype(dtype(p.format));
        }
        let batch = p.lengths.len();
        Tensor::from_slice(values, (batch, rows / batch, heads, channels), &device()?)?
            .to_dtype(dtype(p.format))?
            .transpose(1, 2)?
            .contiguous()?
            .transpose(1, 2)
    };
    Ok([
        tensor(&data.q, p.total_q(), p.heads_q, p.d)?,
        tensor(&data.k, p.total_k(), p.heads_k, p.d)?,
        tensor(&data.v, p.total_k(), p.heads_k, p.d_v)?,
    ])
}

/// The offsets of a problem's sequences.
pub fn seqlens(p: &Problem) -> Result<[Tensor; 2]> {
    let offsets = |lengths: Vec<usize>| {
        let mut sums = vec![0u32];
        for length in lengths {
            sums.push(sums[sums.len() - 1] + length as u32);
        }
        Tensor::new(sums, &device()?)
    };
    Ok([offsets(p.lengths.iter().map(|l| l.0).collect())?, offsets(p.lengths.iter().map(|l| l.1).collect())?])
}

/// Judges under the contract's tolerance; lse `[b, h, s]` or `[h, total]`, or none.
pub fn expect_right(p: &Problem, data: &Data, out: &Tensor, lse: Option<&Tensor>) -> Result<()> {
    let out = out.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let lse = match lse {
        Some(lse) if lse.rank() == 3 => lse.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>()?,
        Some(lse) => lse.flatten_all()?.to_vec1::<f32>()?,
        None => vec![],
    };
    judge(p, data, &out, &lse, crate::support::every).unwrap_or_else(|failure| panic!("{failure}\n{p:?}"));
    Ok(())
}

/// The error of a call that has to be refused, which names all of these.
pub fn expect_refusal<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
    let text = result.expect_err("this has to be refused").to_string();
    for word in words {
        assert!(text.contains(word), "'{text}' does not name '{word}'");
    }
}
