use std::ffi::CStr;
use std::fmt;

use foveal_sys as sys;

/// What a call ended with. Each variant carries the library's message, which names the argument, its value and what is
/// supported.
///
/// After [`InvalidArgument`](Error::InvalidArgument), [`Unsupported`](Error::Unsupported) and
/// [`NoDevice`](Error::NoDevice) nothing has been written; after the others results are undefined.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not a well-formed problem, whatever the backend.
    InvalidArgument(String),
    /// Well-formed, but the backend cannot do it exactly.
    Unsupported(String),
    /// The sm90 backend was asked for, and there is no Hopper GPU, no driver, or no CUDA in this build.
    NoDevice(String),
    /// The CUDA driver refused; the message carries its reason.
    Cuda(String),
    /// Host memory ran out.
    OutOfMemory(String),
    /// A defect of foveal.
    Internal(String),
}

/// `Ok`, or an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The message alone.
    pub fn message(&self) -> &str {
        match self {
            Error::InvalidArgument(text)
            | Error::Unsupported(text)
            | Error::NoDevice(text)
            | Error::Cuda(text)
            | Error::OutOfMemory(text)
            | Error::Internal(text) => text,
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Error::InvalidArgument(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// `status` of the call that this thread made last.
pub(crate) fn check(status: sys::foveal_status) -> Result<()> {
    if status == sys::FOVEAL_OK {
        return Ok(());
    }
    // SAFETY: the library returns a NUL-terminated text that lives until this thread's next call.
    let text = unsafe { CStr::from_ptr(sys::foveal_last_error()) }.to_string_lossy().into_owned();
    Err(match status {
        sys::FOVEAL_INVALID_ARGUMENT => Error::InvalidArgument(text),
        sys::FOVEAL_UNSUPPORTED => Error::Unsupported(text),
        sys::FOVEAL_NO_DEVICE => Error::NoDevice(text),
        sys::FOVEAL_CUDA_ERROR => Error::Cuda(text),
        sys::FOVEAL_OUT_OF_MEMORY => Error::OutOfMemory(text),
        sys::FOVEAL_INTERNAL_ERROR => Error::Internal(text),
        other => Error::Internal(format!("status {other}, which this crate does not know: {text}")),
    })
}
