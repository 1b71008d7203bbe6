//! Attention for [candle](https://docs.rs/candle-core) by [foveal]: on NVIDIA Hopper GPUs, and with the same meaning on
//! any CPU.
//!
//! Coming from `candle-flash-attn-v3` or `candle-flash-attn`: one line of `Cargo.toml` and one `use`,
//!
//! ```
//! use candle_foveal::candle_flash_attn_v3; // and the calls stay as they are
//! # use candle_core::{Device, Tensor};
//! # let q = Tensor::zeros((1, 3, 2, 64), candle_core::DType::F16, &Device::Cpu)?;
//! # let (k, v) = (q.clone(), q.clone());
//! let out = candle_flash_attn_v3::flash_attn(&q, &k, &v, 0.125, true, false)?; // [b, s_q, h_q, d]
//! # assert_eq!(out.dims(), q.dims());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Each argument does what it says, or is refused by an error that names it. Windows and ALiBi slopes work, any head
//! dimension that foveal supports will do, tensors on the CPU are taken, and views are taken without a copy. Beyond
//! those crates: [`Attention`] has foveal's options and the log-sum-exp, [`merge`] puts parts together, and
//! [`Append`] and [`reshape_and_cache`] write caches.
//!
//! All attention here has gradients, by `backward()` as candle's own operations have, whichever function computed it: see
//! [`Attention`]. What has none (keys in pages, merging) is refused in the backward pass, by name.
//!
//! Results are allocated by candle, and so are, for gradients alone, the log-sum-exp, the backward's workspace and single
//! numbers that stand in candle's graph for results; nothing else is allocated on a GPU (decoding's
//! workspace is the caller's: [`Attention::workspace`]), and its work goes to the device's own stream.

mod attention;
mod cache;
pub mod candle_flash_attn;
pub mod candle_flash_attn_v3;
mod forward;
mod gradients;
mod graph;
mod merge;
mod storage;

pub use attention::Attention;
pub use cache::{reshape_and_cache, Append, CacheLayout};
pub use foveal::RotaryLayout;
pub use merge::merge;
