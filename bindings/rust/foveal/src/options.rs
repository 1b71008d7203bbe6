use std::ffi::{c_void, CStr};

use foveal_sys as sys;

use crate::error::check;
use crate::{Error, Result};

/// Who computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Where the tensors' memory lies. (The environment variable `FOVEAL_BACKEND` is not asked: views know it.)
    #[default]
    Auto,
    /// Host memory; a call returns when the result is there.
    Cpu,
    /// Device memory of a Hopper GPU; calls are asynchronous on the caller's stream.
    Sm90,
}

impl Backend {
    pub(crate) fn raw(self) -> sys::foveal_backend {
        match self {
            Backend::Auto => sys::FOVEAL_BACKEND_AUTO,
            Backend::Cpu => sys::FOVEAL_BACKEND_CPU,
            Backend::Sm90 => sys::FOVEAL_BACKEND_SM90,
        }
    }
}

/// Which key a query stands at where there are more keys than queries, or fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// The last query sees the last key: `off = s_k − s_q`.
    #[default]
    BottomRight,
    /// The first query sees the first key: `off = 0`.
    TopLeft,
}

impl Alignment {
    pub(crate) fn raw(self) -> sys::foveal_alignment {
        match self {
            Alignment::BottomRight => sys::FOVEAL_BOTTOM_RIGHT,
            Alignment::TopLeft => sys::FOVEAL_TOP_LEFT,
        }
    }
}

/// Which elements of a row a rotary embedding turns together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RotaryLayout {
    /// Element `i` with element `i + rot/2`.
    #[default]
    HalfSplit,
    /// Element `2i` with element `2i + 1`.
    Interleaved,
}

impl RotaryLayout {
    pub(crate) fn raw(self) -> sys::foveal_rotary_layout {
        match self {
            RotaryLayout::HalfSplit => sys::FOVEAL_ROTARY_HALF_SPLIT,
            RotaryLayout::Interleaved => sys::FOVEAL_ROTARY_INTERLEAVED,
        }
    }
}

/// The stream that a call's work goes to: a `cudaStream_t` (`CUstream`), or none for the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Stream(*mut c_void);

// SAFETY: a CUDA stream may be used from any thread of the process.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// For the CPU backend.
    pub const fn none() -> Self {
        Stream(std::ptr::null_mut())
    }

    /// A CUDA stream.
    ///
    /// # Safety
    ///
    /// `stream` is a `cudaStream_t` that lives until the calls that get it have returned.
    pub const unsafe fn from_raw(stream: *mut c_void) -> Self {
        Stream(stream)
    }

    pub(crate) fn raw(self) -> *mut c_void {
        self.0
    }
}

/// The version of the linked library, `"0.1.0"`.
pub fn version() -> String {
    // SAFETY: the library returns a NUL-terminated text that lives for ever.
    unsafe { CStr::from_ptr(sys::foveal_version()) }.to_string_lossy().into_owned()
}

/// Is the backend part of the linked library? [`Backend::Cpu`] always is; [`Backend::Auto`] is none.
pub fn backend_built(backend: Backend) -> bool {
    // SAFETY: takes a number, of any value.
    unsafe { sys::foveal_backend_built(backend.raw()) == 1 }
}

/// Sets how many threads a call on the CPU may use at most, the caller's included, for all threads of the process;
/// results do not depend on it. 0 takes it back: then `FOVEAL_NUM_THREADS` counts, else the CPUs at hand.
///
/// Errors: more than 4096.
pub fn set_num_threads(threads: u32) -> Result<()> {
    let threads = i32::try_from(threads)
        .map_err(|_| Error::invalid(format!("threads is {threads}; it must be in [1, 4096], or 0")))?;
    // SAFETY: takes a number, of any value.
    check(unsafe { sys::foveal_set_num_threads(threads) })
}

/// Calls `work(job)` on the calling thread and on up to `threads - 1` others, and returns when all of its calls have.
/// Each call does what the others have left: fewer calls are slower, not wrong. `context` is what was set with it.
pub type ThreadRunner = unsafe extern "C" fn(
    work: Option<unsafe extern "C" fn(job: *mut c_void)>,
    job: *mut c_void,
    threads: i32,
    context: *mut c_void,
);

/// Another pool's threads (OpenMP's, rayon's) for calls on the CPU, in place of the library's own, for all threads of the
/// process from their next call on; `None`: its own again. A child of `fork` has the library's own.
///
/// # Safety
///
/// `runner` does what [`ThreadRunner`] says and does not unwind; it and `context` outlive the calls that begin before
/// another one is set.
pub unsafe fn set_thread_runner(runner: Option<ThreadRunner>, context: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { sys::foveal_set_thread_runner(runner, context) }
}

/// How many threads this thread's next call on the CPU may use.
///
/// Errors: `FOVEAL_NUM_THREADS` is asked and malformed.
pub fn num_threads() -> Result<u32> {
    // SAFETY: takes nothing.
    let threads = unsafe { sys::foveal_get_num_threads() };
    u32::try_from(threads).map_err(|_| match check(sys::FOVEAL_INVALID_ARGUMENT) {
        Err(error) => error,
        Ok(()) => Error::invalid("FOVEAL_NUM_THREADS is malformed"),
    })
}
