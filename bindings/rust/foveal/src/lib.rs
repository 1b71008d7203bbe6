//! Fused attention, `softmax(scale · Q · Kᵀ + bias, masked) · V`, on NVIDIA Hopper GPUs (H100, H200) and, with the same
//! meaning, on any CPU. Safe, and of `std` alone; tensors of any engine are viewed where they lie.
//!
//! ```
//! use foveal::{Forward, Stream, Tensor, TensorMut};
//!
//! let (q, k, v) = ([1f32, 0., 0., 1.], [1f32, 0., 0., 1.], [1f32, 2., 3., 4.]);
//! let mut out = [0f32; 4];
//! let shape = [1, 2, 1, 2]; // [b, s, h, d]
//! Forward::new(
//!     Tensor::new(&q, &shape)?,
//!     Tensor::new(&k, &shape)?,
//!     Tensor::new(&v, &shape)?,
//!     TensorMut::new(&mut out, &shape)?,
//! )
//! .causal()
//! .run(Stream::none())?;
//! assert_eq!(out[..2], [1., 2.]);
//! assert!((out[2] - 2.33952).abs() < 1e-5);
//! # Ok::<(), foveal::Error>(())
//! ```
//!
//! - **Shapes.** Dense: q `[b, s_q, h_q, d]`, k `[b, s_k, h_k, d]`, v `[b, s_k, h_k, d_v]`, out `[b, s_q, h_q, d_v]`.
//!   Varlen: q `[total_q, h_q, d]`, k and v `[total_k, h_k, ·]`, with offsets `cu_seqlens` of `b + 1` entries.
//!   Paged: k `[pages, page_size, h_k, d]`, v likewise, with a block table. `h_q` is a multiple of `h_k`.
//! - **Refuses, never ignores.** What a backend cannot do exactly is an [`Error`] that names the argument and its value.
//! - **A guest.** No device memory is allocated, nothing is synchronised, only the caller's stream is used.
//! - **Safety.** Views of slices are checked against their slice, so that calls on the CPU are safe whatever the
//!   numbers say. Device memory comes in through [`Tensor::from_raw`] and a stream through [`Stream::from_raw`], which
//!   are `unsafe` and say what has to hold until the work on the stream is done.
//!
//! The meaning of every option is foveal's contract (`docs/contract.md` in its repository). What is linked, and how, is
//! said in the crate `foveal-sys`; the features `build` and `cuda` are handed on to it.

mod append;
mod backward;
mod element;
mod error;
mod forward;
mod merge;
mod options;
mod pages;
mod place;
mod plan;
mod tensor;

pub use append::Append;
pub use backward::Backward;
pub use element::{Bf16, DType, E4m3, Element, F16};
pub use error::{Error, Result};
pub use forward::Forward;
pub use merge::{Merge, Part, MAX_MERGE_PARTS};
pub use options::{
    backend_built, num_threads, set_num_threads, set_thread_runner, version, Alignment, Backend, RotaryLayout, Stream,
    ThreadRunner,
};
pub use pages::{CopyPages, Gather};
pub use plan::{Plan, Workspace};
pub use tensor::{Memory, Tensor, TensorMut};
