use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::place::Places;
use crate::{Backend, Result, Stream, Tensor, TensorMut};

/// Whole pages of a cache copied, bit for bit: for each pair of pages all of the first goes to the second, as a cache
/// that shares pages does before it writes to one.
///
/// ```
/// use foveal::{CopyPages, Stream, Tensor, TensorMut};
///
/// let mut cache = [1f32, 2., 0., 0., 5., 6.]; // three pages of one row
/// CopyPages::new(Tensor::new(&[0i32, 1], &[1, 2])?)
///     .k_cache(TensorMut::new(&mut cache, &[3, 1, 1, 2])?)
///     .run(Stream::none())?;
/// assert_eq!(cache, [1., 2., 1., 2., 5., 6.]);
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct CopyPages<'a> {
    args: sys::foveal_copy_pages_args,
    places: Places,
    backend: Backend,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor and TensorMut, which are Send and Sync.
unsafe impl Send for CopyPages<'_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for CopyPages<'_> {}

impl<'a> CopyPages<'a> {
    /// `pairs`: i32 or i64 `[n, 2]`, source and target; nothing is copied where one of them is negative. No page is the
    /// target of two pairs, nor the target of one and the source of another. At least one cache follows.
    #[must_use]
    pub fn new(pairs: Tensor<'a>) -> Self {
        let mut copy = Self {
            args: sys::foveal_copy_pages_args::new(),
            places: Places::default(),
            backend: Backend::Auto,
            life: PhantomData,
        };
        copy.places.add("pairs", &pairs.raw, pairs.memory);
        copy.args.pairs = pairs.raw;
        copy
    }

    /// `[pages, page_size, h_k, d]`: f32, bf16 or f16.
    #[must_use]
    pub fn k_cache(mut self, cache: TensorMut<'a>) -> Self {
        self.places.add("k_cache", &cache.raw, cache.memory);
        self.args.k_cache = cache.raw;
        self
    }

    /// `[pages, page_size, h_k, d_v]`, k_cache's type.
    #[must_use]
    pub fn v_cache(mut self, cache: TensorMut<'a>) -> Self {
        self.places.add("v_cache", &cache.raw, cache.memory);
        self.args.v_cache = cache.raw;
        self
    }

    /// Who computes. Default: where the tensors lie.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Copies; asynchronous on `stream` on a GPU. Host memory's pairs are checked before anything is written.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let mut args = self.args;
        args.backend = self.places.backend_with_data(self.backend)?.raw();
        // SAFETY: args is initialised; the tensors as in Forward::run().
        check(unsafe { sys::foveal_copy_pages(&args, stream.raw()) })
    }
}

/// The keys and values of sequences in pages, written one sequence behind the other, bit for bit: the form in which
/// [`Forward`](crate::Forward) takes them as varlen k and v.
///
/// ```
/// use foveal::{Gather, Stream, Tensor, TensorMut};
///
/// let cache = [1f32, 2., 3., 4., 5., 6.]; // three pages of two rows
/// let mut k = [0f32; 3];
/// Gather::new(Tensor::new(&[0i32, 3], &[2])?)
///     .k(Tensor::new(&cache, &[3, 2, 1, 1])?, TensorMut::new(&mut k, &[3, 1, 1])?)
///     .block_table(Tensor::new(&[2i32, 0], &[1, 2])?)
///     .run(Stream::none())?;
/// assert_eq!(k, [5., 6., 1.]);
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct Gather<'a> {
    args: sys::foveal_gather_args,
    places: Places,
    backend: Backend,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor and TensorMut, which are Send and Sync.
unsafe impl Send for Gather<'_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for Gather<'_> {}

macro_rules! tensor_options {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, tensor: Tensor<'a>) -> Self {
            self.places.add(stringify!($name), &tensor.raw, tensor.memory);
            self.args.$name = tensor.raw;
            self
        }
    )*};
}

impl<'a> Gather<'a> {
    /// `cu_seqlens_k`: i32 `[b + 1]`, ascending from 0 to total_k: where each sequence's rows begin. One of
    /// [`k`](Gather::k) and [`v`](Gather::v) and a table of pages follow.
    #[must_use]
    pub fn new(cu_seqlens_k: Tensor<'a>) -> Self {
        let mut gather = Self {
            args: sys::foveal_gather_args::new(),
            places: Places::default(),
            backend: Backend::Auto,
            life: PhantomData,
        };
        gather.places.add("cu_seqlens_k", &cu_seqlens_k.raw, cu_seqlens_k.memory);
        gather.args.cu_seqlens_k = cu_seqlens_k.raw;
        gather
    }

    /// The cache `[pages, page_size, h_k, d]` and where its rows go, `[total_k, h_k, d]` of the same type.
    #[must_use]
    pub fn k(mut self, cache: Tensor<'a>, rows: TensorMut<'a>) -> Self {
        self.places.add("k_cache", &cache.raw, cache.memory);
        self.places.add("k", &rows.raw, rows.memory);
        (self.args.k_cache, self.args.k) = (cache.raw, rows.raw);
        self
    }

    /// The cache `[pages, page_size, h_k, d_v]` and where its rows go, `[total_k, h_k, d_v]` of the same type.
    #[must_use]
    pub fn v(mut self, cache: Tensor<'a>, rows: TensorMut<'a>) -> Self {
        self.places.add("v_cache", &cache.raw, cache.memory);
        self.places.add("v", &rows.raw, rows.memory);
        (self.args.v_cache, self.args.v) = (cache.raw, rows.raw);
        self
    }

    /// The sequences' pages as a list, in place of a table: `indptr`, i32 `[b + 1]`, says which of `indices`, i32 or u32
    /// `[n]`, are whose.
    #[must_use]
    pub fn page_list(mut self, indptr: Tensor<'a>, indices: Tensor<'a>) -> Self {
        self.places.add("page_indptr", &indptr.raw, indptr.memory);
        self.places.add("page_indices", &indices.raw, indices.memory);
        (self.args.page_indptr, self.args.page_indices) = (indptr.raw, indices.raw);
        self
    }

    tensor_options! {
        /// i32 or u32 `[b, max_pages]`: the sequences' pages. Entries behind a sequence's last row are not read.
        block_table;
        /// i32 `[b]`: only so many rows of each sequence are written.
        seqused_k;
    }

    /// Who computes. Default: where the tensors lie.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Copies; asynchronous on `stream` on a GPU. Host memory's lengths and pages are checked before anything is
    /// written.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let mut args = self.args;
        args.backend = self.places.backend_with_data(self.backend)?.raw();
        // SAFETY: args is initialised; the tensors as in Forward::run().
        check(unsafe { sys::foveal_gather(&args, stream.raw()) })
    }
}
