use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::place::Places;
use crate::{Backend, Error, Result, Stream, Tensor, TensorMut};

/// Partial results of one [`Merge`]; more are merged in several calls.
pub const MAX_MERGE_PARTS: usize = sys::FOVEAL_MAX_MERGE_PARTS as usize;

/// A partial result: attention over some of the keys, as [`Forward`](crate::Forward) gives it with a log-sum-exp.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// `[b, s_q, h_q, d_v]` or `[total_q, h_q, d_v]`: f32, bf16 or f16.
    pub out: Tensor<'a>,
    /// f32 `[b, h_q, s_q]` or `[h_q, total_q]`; natural logarithm.
    pub lse: Tensor<'a>,
}

/// Partial results over disjoint sets of keys put together, as attention over all of them:
/// `lse = log Σ exp(lse_n)`, `out = Σ exp(lse_n − lse) · out_n`, in fp32.
///
/// A part whose lse is −∞ counts nothing, whatever its out holds; if all are, out = 0 and lse = −∞. The order of the
/// parts settles every bit.
///
/// ```
/// use foveal::{Merge, Part, Stream, Tensor, TensorMut};
///
/// let (a, b, lse) = ([1f32, 2.], [3f32, 4.], [0f32]);
/// let mut out = [0f32; 2];
/// let part = |out| Ok::<_, foveal::Error>(Part {
///     out: Tensor::new(out, &[1, 1, 1, 2])?,
///     lse: Tensor::new(&lse, &[1, 1, 1])?,
/// });
/// Merge::new(&[part(&a)?, part(&b)?], TensorMut::new(&mut out, &[1, 1, 1, 2])?).run(Stream::none())?;
/// assert_eq!(out, [2., 3.]);
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct Merge<'a> {
    outs: Vec<sys::foveal_tensor>,
    lses: Vec<sys::foveal_tensor>,
    out: sys::foveal_tensor,
    lse: Option<sys::foveal_tensor>,
    places: Places,
    backend: Backend,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor and TensorMut, which are Send and Sync.
unsafe impl Send for Merge<'_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for Merge<'_> {}

impl<'a> Merge<'a> {
    /// 1 to [`MAX_MERGE_PARTS`] parts of one shape and type; `out` has their shape, and their type or f32.
    #[must_use]
    pub fn new(parts: &[Part<'a>], out: TensorMut<'a>) -> Self {
        let mut merge = Self {
            outs: Vec::with_capacity(parts.len() + 1),
            lses: Vec::with_capacity(parts.len() + 1),
            out: out.raw,
            lse: None,
            places: Places::default(),
            backend: Backend::Auto,
            life: PhantomData,
        };
        merge.places.add("out", &out.raw, out.memory);
        merge.add(parts);
        merge
    }

    /// The same in place: `out` (and `lse`) hold the first part, and become the result.
    #[must_use]
    pub fn in_place(out: TensorMut<'a>, lse: TensorMut<'a>, rest: &[Part<'a>]) -> Self {
        let (first_out, first_lse) = (out.raw, lse.raw);
        let mut merge = Self::new(&[], out).lse(lse);
        merge.outs.push(first_out);
        merge.lses.push(first_lse);
        merge.add(rest);
        merge
    }

    fn add(&mut self, parts: &[Part<'a>]) {
        for part in parts {
            self.places.add("outs", &part.out.raw, part.out.memory);
            self.places.add("lses", &part.lse.raw, part.lse.memory);
            self.outs.push(part.out.raw);
            self.lses.push(part.lse.raw);
        }
    }

    /// Where the merged log-sum-exp goes: f32 `[b, h_q, s_q]` or `[h_q, total_q]`.
    #[must_use]
    pub fn lse(mut self, lse: TensorMut<'a>) -> Self {
        self.places.add("lse", &lse.raw, lse.memory);
        self.lse = Some(lse.raw);
        self
    }

    /// Who computes. Default: where the tensors lie.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Computes; asynchronous on `stream` on a GPU.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let mut args = sys::foveal_merge_args::new();
        args.backend = self.places.backend_with_data(self.backend)?.raw();
        args.parts = i32::try_from(self.outs.len())
            .map_err(|_| Error::invalid(format!("there are {} parts; 1 to 32 are merged", self.outs.len())))?;
        args.outs = self.outs.as_ptr();
        args.lses = self.lses.as_ptr();
        args.out = self.out;
        if let Some(lse) = self.lse {
            args.lse = lse;
        }
        // SAFETY: args is initialised, outs and lses have `parts` entries each; the tensors as in Forward::run().
        check(unsafe { sys::foveal_merge(&args, stream.raw()) })
    }
}
