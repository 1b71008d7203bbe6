use std::fmt;
use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::{Forward, Result, Stream};

/// Device memory for the intermediate results of a launch.
#[derive(Debug)]
pub struct Workspace<'a> {
    pub(crate) data: *mut std::ffi::c_void,
    pub(crate) bytes: u64,
    life: PhantomData<&'a mut ()>,
}

impl Workspace<'_> {
    /// `bytes` of device memory at `data`, which is aligned to 16 bytes.
    ///
    /// # Safety
    ///
    /// For the workspace's lifetime, and until the work on the stream of the calls that get it is done: the memory is of
    /// the GPU that the stream belongs to; it was filled with zeros once, when it was allocated, and since then calls
    /// alone have written it; no two calls that may run at the same time have it.
    pub unsafe fn from_raw(data: *mut std::ffi::c_void, bytes: usize) -> Self {
        Workspace { data, bytes: bytes as u64, life: PhantomData } // usize has at most 64 bits
    }
}

/// A kept plan: immutable, usable from several threads. `Display` describes it for people.
///
/// ```
/// use foveal::{Backend, DType, Forward, Tensor, TensorMut};
///
/// let (shape, strides) = ([1, 4096, 32, 128], [4096 * 32 * 128, 32 * 128, 128, 1]);
/// let q = Tensor::described(DType::Bf16, &shape, &strides)?;
/// let out = TensorMut::described(DType::Bf16, &shape, &strides)?;
/// let plan = Forward::new(q, q, q, out).causal().backend(Backend::Cpu).plan(None)?;
/// println!("{plan}");
/// assert_eq!(plan.workspace_bytes(), 0);
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct Plan(pub(crate) *mut sys::foveal_plan);

// SAFETY: the library's plans are immutable; any functions may use one at the same time.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    /// [`Forward::run`] with this plan; `forward` describes the problem that the plan was made for, pointers may differ.
    ///
    /// Errors: those of [`Forward::run`], and a problem that is another one than the plan's.
    pub fn run(&self, forward: &mut Forward<'_>, stream: Stream) -> Result<()> {
        let args = forward.args_to_run()?;
        // SAFETY: as Forward::run(); the plan lives as long as self.
        check(unsafe { sys::foveal_plan_launch(self.0, &args, stream.raw()) })
    }

    /// Bytes of device workspace that make a launch fast: see [`Workspace`].
    pub fn workspace_bytes(&self) -> usize {
        // SAFETY: the plan lives as long as self.
        unsafe { sys::foveal_plan_workspace_bytes(self.0) }
    }

    fn describe(&self) -> Result<String> {
        let mut size = 0usize;
        // SAFETY: the plan lives as long as self; no text is written where its size is 0.
        check(unsafe { sys::foveal_plan_describe(self.0, std::ptr::null_mut(), 0, &mut size) })?;
        let mut text = vec![0u8; size];
        // SAFETY: `text` has `size` bytes.
        check(unsafe {
            sys::foveal_plan_describe(self.0, text.as_mut_ptr().cast(), text.len(), std::ptr::null_mut())
        })?;
        text.pop(); // the terminating NUL
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Ok(text) => f.write_str(&text),
            Err(error) => write!(f, "a plan that cannot be described: {error}"),
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: the plan was made by foveal_plan_create(), and nobody uses it any more.
        unsafe { sys::foveal_plan_destroy(self.0) }
    }
}
