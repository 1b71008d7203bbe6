//! The program that the documents show.

use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::candle_flash_attn_v3::flash_attn;

fn main() -> Result<()> {
    let q = Tensor::randn(0f32, 1., (1, 512, 8, 128), &Device::Cpu)?.to_dtype(DType::BF16)?; // [b, s_q, h_q, d]
    let kv = Tensor::randn(0f32, 1., (1, 512, 2, 128), &Device::Cpu)?.to_dtype(DType::BF16)?; // [b, s_k, h_k, d]
    let out = flash_attn(&q, &kv, &kv, 1. / 128f32.sqrt(), true, false)?;
    println!("{:?}", out.dims());
    Ok(())
}
