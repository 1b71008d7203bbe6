//! The C ABI of [foveal](https://docs.rs/foveal): fused attention for NVIDIA Hopper GPUs and CPUs.
//!
//! Names, types and meanings are those of `foveal.h`, which documents every field: shapes, units, defaults and errors.
//! Most programs want the safe crate `foveal`.
//!
//! ```
//! use foveal_sys as sys;
//!
//! let mut data = [0f32; 4]; // [b, s, h, d]
//! let view = sys::foveal_tensor {
//!     data: data.as_mut_ptr().cast(),
//!     dtype: sys::FOVEAL_F32,
//!     rank: 4,
//!     shape: [1, 2, 1, 2],
//!     stride: [4, 2, 2, 1],
//! };
//! let args = sys::foveal_forward_args { q: view, k: view, v: view, out: view, ..sys::foveal_forward_args::new() };
//! // SAFETY: args is initialised; foveal_supports() looks at no data.
//! assert_eq!(unsafe { sys::foveal_supports(&args) }, sys::FOVEAL_OK);
//! ```
//!
//! # Linking
//!
//! An installed libfoveal is found through pkg-config (`PKG_CONFIG_PATH`). With the feature `build` cmake builds this
//! package's C++ sources as a static library (`cuda`: with the backend for Hopper GPUs, which needs nvcc); Highway
//! (Debian: `libhwy-dev`) is found, never fetched. No CUDA toolkit is needed at run time. All symbols begin with
//! `foveal_` or lie in the C++ namespace `foveal`.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
#![allow(clippy::undocumented_unsafe_blocks)]

#[rustfmt::skip] // as bindgen writes it
mod bindings;
pub use bindings::*;

impl foveal_forward_args {
    /// The defaults, as `foveal_forward_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: the library writes size_of::<Self>() bytes at most; all-zero bytes are a valid Self before that.
        unsafe {
            foveal_forward_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl foveal_backward_args {
    /// The defaults, as `foveal_backward_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as foveal_forward_args::new().
        unsafe {
            foveal_backward_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl foveal_merge_args {
    /// The defaults, as `foveal_merge_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as foveal_forward_args::new().
        unsafe {
            foveal_merge_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl foveal_append_args {
    /// The defaults, as `foveal_append_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as foveal_forward_args::new().
        unsafe {
            foveal_append_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl foveal_copy_pages_args {
    /// The defaults, as `foveal_copy_pages_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as foveal_forward_args::new().
        unsafe {
            foveal_copy_pages_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl foveal_gather_args {
    /// The defaults, as `foveal_gather_args_init()` of the header sets them.
    pub fn new() -> Self {
        let mut args = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as foveal_forward_args::new().
        unsafe {
            foveal_gather_args_init_sized(args.as_mut_ptr(), size_of::<Self>());
            args.assume_init()
        }
    }
}

impl Default for foveal_forward_args {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for foveal_backward_args {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for foveal_merge_args {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for foveal_append_args {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for foveal_copy_pages_args {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for foveal_gather_args {
    fn default() -> Self {
        Self::new()
    }
}
