use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::place::Places;
use crate::{Error, Forward, Plan, Result, Stream, Tensor, TensorMut, Workspace};

/// The gradients of a [`Forward`] call that has been run, its log-sum-exp included.
///
/// With x the score behind softcap, slopes and bias: `p = exp(x − lse)`, `D = Σ dout · out − dlse`,
/// `dx = p · (dout · v − D)`; then through softcap and scale to q and k. Sums are in fp32 and in a fixed order: the same
/// inputs give the same bits. Each gradient that is named is written, not added to; rows and keys without a partner get
/// exact zeros, rows outside used lengths are not written.
///
/// ```
/// use foveal::{Backward, Forward, Stream, Tensor, TensorMut};
///
/// let (q, k, v, dout) = ([1f32, 0., 0., 1.], [1f32, 0., 0., 1.], [1f32, 2., 3., 4.], [1f32; 4]);
/// let (mut out, mut lse, mut dv) = ([0f32; 4], [0f32; 2], [0f32; 4]);
/// let shape = [1, 2, 1, 2]; // [b, s, h, d]
/// let mut forward = Forward::new(
///     Tensor::new(&q, &shape)?,
///     Tensor::new(&k, &shape)?,
///     Tensor::new(&v, &shape)?,
///     TensorMut::new(&mut out, &shape)?,
/// )
/// .lse(TensorMut::new(&mut lse, &[1, 1, 2])?);
/// forward.run(Stream::none())?;
/// Backward::of(&forward, Tensor::new(&dout, &shape)?)
///     .dv(TensorMut::new(&mut dv, &shape)?)
///     .run(Stream::none())?;
/// assert!((dv.iter().sum::<f32>() - 4.).abs() < 1e-6); // each query's weights sum to 1
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct Backward<'f, 'a> {
    forward: &'f Forward<'a>,
    args: sys::foveal_backward_args,
    places: Places,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor, TensorMut and Workspace, whose memory every thread may use.
unsafe impl Send for Backward<'_, '_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for Backward<'_, '_> {}

macro_rules! gradients {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, gradient: TensorMut<'a>) -> Self {
            self.places.add(stringify!($name), &gradient.raw, gradient.memory);
            self.args.$name = gradient.raw;
            self
        }
    )*};
}

impl<'f, 'a> Backward<'f, 'a> {
    /// `forward`: the call, which has an [`lse`](Forward::lse) and has been run (before: [`Forward::was_run`]). `dout`: the gradient of what follows
    /// with respect to its out, of out's shape and type.
    #[must_use]
    pub fn of(forward: &'f Forward<'a>, dout: Tensor<'a>) -> Self {
        let mut args = sys::foveal_backward_args::new();
        let mut places = forward.places;
        places.add("dout", &dout.raw, dout.memory);
        args.dout = dout.raw;
        Self { forward, args, places, life: PhantomData }
    }

    /// The gradient of what follows with respect to the log-sum-exp, where that is used: f32, of its shape.
    #[must_use]
    pub fn dlse(mut self, dlse: Tensor<'a>) -> Self {
        self.places.add("dlse", &dlse.raw, dlse.memory);
        self.args.dlse = dlse.raw;
        self
    }

    gradients! {
        /// Of q, of its shape and type.
        dq;
        /// Of k, of its shape and type.
        dk;
        /// Of v, of its shape and type.
        dv;
        /// Of the sinks: f32 `[h_q]`.
        dsinks;
        /// Of the bias: of its shape, dimensions of size 1 summed over; f32 or of the bias's type.
        dbias;
        /// Of the slopes: f32, of their shape.
        dalibi_slopes;
    }

    /// Memory for intermediate results on a GPU, as much as [`Plan::workspace_bytes`] says of [`plan`](Backward::plan).
    #[must_use]
    pub fn workspace(mut self, workspace: Workspace<'a>) -> Self {
        (self.args.workspace, self.args.workspace_bytes) = (workspace.data, workspace.bytes);
        self
    }

    /// Computes; asynchronous on `stream` on a GPU.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let forward = self.forward.args(self.places.backend_with_data(self.forward.backend)?)?;
        let mut args = self.args;
        args.forward = &forward;
        // SAFETY: both structures are initialised and outlive the call; their tensors view memory that the backend can
        // reach, within its bounds; what is written is borrowed for 'a by nobody else.
        check(unsafe { sys::foveal_backward(&args, stream.raw()) })
    }

    /// Would [`run`](Backward::run) accept these shapes, strides, types and options? As [`Forward::supports`].
    ///
    /// Errors: the reason why not.
    pub fn supports(&self) -> Result<()> {
        let forward = self.forward.args(self.places.backend(self.forward.backend)?)?;
        let mut args = self.args;
        args.forward = &forward;
        // SAFETY: both structures are initialised, and no data pointer is followed.
        check(unsafe { sys::foveal_backward_supports(&args) })
    }

    /// As [`Forward::plan`].
    ///
    /// Errors: those of [`run`](Backward::run).
    pub fn plan(&self, device: Option<u32>) -> Result<Plan> {
        let forward = self.forward.args(self.places.backend(self.forward.backend)?)?;
        let mut args = self.args;
        args.forward = &forward;
        let device = device.map_or(Ok(-1), |number| {
            i32::try_from(number).map_err(|_| Error::invalid(format!("there is no CUDA device {number}")))
        })?;
        let mut plan = std::ptr::null_mut();
        // SAFETY: both structures are initialised, no data pointer is followed, and `plan` can be written.
        check(unsafe { sys::foveal_backward_plan_create(&args, device, &mut plan) })?;
        Ok(Plan(plan))
    }
}
