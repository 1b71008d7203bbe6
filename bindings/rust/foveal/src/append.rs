use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::place::Places;
use crate::{Backend, Result, RotaryLayout, Stream, Tensor, TensorMut};

/// New rows of k and v into a cache of pages, turned by a rotary embedding and divided by a scale on the way, and rows
/// of q turned alike. One kernel; the rest of the cache keeps every bit.
///
/// New rows are dense, `[b, s_new, heads, d]`, or ragged, `[total_new, heads, d]`: f32, bf16 or f16. A cache is one of
/// those or e4m3 (CPU; what is larger than 448 becomes 448), `[pages, page_size, h_k, d]`, with any strides but the
/// last, so `[pages, h_k, page_size, d]` is handed over as a view.
/// Rows go to slots ([`slot_mapping`](Append::slot_mapping)) or behind what the cache holds
/// ([`cache_lengths`](Append::cache_lengths)).
///
/// ```
/// use foveal::{Append, Stream, Tensor, TensorMut};
///
/// let (k, slots) = ([1f32, 2., 3., 4.], [3i64, -1]); // two rows; the second is not written
/// let mut cache = [0f32; 8];
/// Append::new()
///     .k(Tensor::new(&k, &[2, 1, 2])?, TensorMut::new(&mut cache, &[2, 2, 1, 2])?)
///     .slot_mapping(Tensor::new(&slots, &[2])?)
///     .run(Stream::none())?;
/// assert_eq!(cache, [0., 0., 0., 0., 0., 0., 1., 2.]);
/// # Ok::<(), foveal::Error>(())
/// ```
#[derive(Debug)]
pub struct Append<'a> {
    args: sys::foveal_append_args,
    places: Places,
    backend: Backend,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor and TensorMut, which are Send and Sync.
unsafe impl Send for Append<'_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for Append<'_> {}

impl Default for Append<'_> {
    fn default() -> Self {
        Self::new()
    }
}

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

impl<'a> Append<'a> {
    /// Nothing yet: at least one of [`k`](Append::k), [`v`](Append::v) and [`q`](Append::q) follows.
    #[must_use]
    pub fn new() -> Self {
        Self {
            args: sys::foveal_append_args::new(),
            places: Places::default(),
            backend: Backend::Auto,
            life: PhantomData,
        }
    }

    /// New rows of k, `[b, s_new, h_k, d]` or `[total_new, h_k, d]`, and their cache `[pages, page_size, h_k, d]`.
    #[must_use]
    pub fn k(mut self, rows: Tensor<'a>, cache: TensorMut<'a>) -> Self {
        self.places.add("k", &rows.raw, rows.memory);
        self.places.add("k_cache", &cache.raw, cache.memory);
        (self.args.k, self.args.k_cache) = (rows.raw, cache.raw);
        self
    }

    /// New rows of v, `[b, s_new, h_k, d_v]` or `[total_new, h_k, d_v]`, and their cache `[pages, page_size, h_k, d_v]`.
    #[must_use]
    pub fn v(mut self, rows: Tensor<'a>, cache: TensorMut<'a>) -> Self {
        self.places.add("v", &rows.raw, rows.memory);
        self.places.add("v_cache", &cache.raw, cache.memory);
        (self.args.v, self.args.v_cache) = (rows.raw, cache.raw);
        self
    }

    /// Rows of q, `[b, s_new, h_q, d]` or `[total_new, h_q, d]`, and where they go, turned: the same shape and type.
    #[must_use]
    pub fn q(mut self, rows: Tensor<'a>, turned: TensorMut<'a>) -> Self {
        self.places.add("q", &rows.raw, rows.memory);
        self.places.add("q_out", &turned.raw, turned.memory);
        (self.args.q, self.args.q_out) = (rows.raw, turned.raw);
        self
    }

    /// The same in place.
    #[must_use]
    pub fn q_in_place(mut self, rows: TensorMut<'a>) -> Self {
        self.places.add("q", &rows.raw, rows.memory);
        (self.args.q, self.args.q_out) = (rows.raw, rows.raw);
        self
    }

    /// The rotary embedding of k and q: cos and sin `[positions, rot/2]`, f32 or k's type; rot is even and at most d.
    #[must_use]
    pub fn rotary(mut self, cos: Tensor<'a>, sin: Tensor<'a>, layout: RotaryLayout) -> Self {
        self.places.add("cos", &cos.raw, cos.memory);
        self.places.add("sin", &sin.raw, sin.memory);
        (self.args.cos, self.args.sin) = (cos.raw, sin.raw);
        self.args.rotary_layout = layout.raw();
        self
    }

    tensor_options! {
        /// i64 `[b, s_new]` or `[total_new]`: page · page_size + row of the page; negative: the row is not written.
        /// Of two rows with the same slot, which the caller should not give, either may be there afterwards, or some of
        /// the elements of each.
        slot_mapping;
        /// i32 `[b]`: row n of sequence i becomes its key number `cache_lengths[i] + n`.
        cache_lengths;
        /// i32 `[b + 1]`: the sequences of ragged rows, ascending from 0 to total_new.
        cu_seqlens;
        /// i32 or u32 `[b, max_pages]`: the sequences' pages. Absent: page i is all of sequence i.
        block_table;
        /// i32 or i64 `[b, s_new]` or `[total_new]`: for the rotary embedding. Absent: the number that a row gets as a
        /// key.
        positions;
        /// f32 `[1]` or `[h_k]`: k_cache holds x / scale. Absent: 1.
        k_scale;
        /// f32 `[1]` or `[h_k]`: v_cache holds x / scale. Absent: 1.
        v_scale;
    }

    /// f32, written, of a cache in e4m3 and in place of [`k_scale`](Append::k_scale): the scale is worked out, the largest
    /// finite magnitude, turned, over 448; 1 where that is 0. `[h_k]`: of all rows that are written, head by head, for a
    /// cache that holds no others; `[pages, page_size, h_k]`: of each row, at its place in the cache.
    #[must_use]
    pub fn k_scale_out(mut self, scale: TensorMut<'a>) -> Self {
        self.places.add("k_scale_out", &scale.raw, scale.memory);
        self.args.k_scale_out = scale.raw;
        self
    }

    /// The same of v.
    #[must_use]
    pub fn v_scale_out(mut self, scale: TensorMut<'a>) -> Self {
        self.places.add("v_scale_out", &scale.raw, scale.memory);
        self.args.v_scale_out = scale.raw;
        self
    }

    /// Who computes. Default: where the tensors lie.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Computes; asynchronous on `stream` on a GPU. Host memory's slots, lengths, pages and positions are checked before
    /// anything is written.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let mut args = self.args;
        args.backend = self.places.backend_with_data(self.backend)?.raw();
        // SAFETY: args is initialised; the tensors as in Forward::run().
        check(unsafe { sys::foveal_append(&args, stream.raw()) })
    }
}
