use candle_core::{bail, CpuStorage, InplaceOp2, Layout, Result, Tensor};
use foveal::RotaryLayout;

use crate::storage::{packed, view, view_mut, wrap, Held, Operand, Place};

/// How a cache of pages lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheLayout {
    /// `[pages, page_size, h_k, d]`.
    Nhd,
    /// `[pages, h_k, page_size, d]`.
    Hnd,
}

/// Writes new rows of k and v, `[total_new, h_k, d]` or `[b, s_new, h_k, d]`, to their slots of both caches, in place.
///
/// `slot_mapping` i64 `[total_new]` or `[b, s_new]`: page · page_size + row of the page; a negative one: the row is not
/// written. The rest of the caches keeps every bit. Rows are converted to the cache's type: f32, bf16 or f16, on the CPU
/// also e4m3 (candle's `F8E4M3`).
///
/// Errors: what does not fit, by the argument's name; on the CPU also a slot that is out of range, before the cache that
/// it is of is written.
pub fn reshape_and_cache(
    k: &Tensor,
    v: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slot_mapping: &Tensor,
    layout: CacheLayout,
) -> Result<()> {
    let append = Append::new(layout).slot_mapping(slot_mapping);
    append.write_k(k, k_cache)?;
    append.write_v(v, v_cache)
}

/// New rows of k and v into caches of pages, k turned by a rotary embedding on the way, and q turned alike.
///
/// Rows are dense, `[b, s_new, heads, d]`, or ragged, `[total_new, heads, d]`; they go to slots or behind what the cache
/// holds. Each of the three calls is one kernel.
#[derive(Clone, Debug)]
pub struct Append {
    layout: CacheLayout,
    slot_mapping: Option<Tensor>,
    cache_lengths: Option<Tensor>,
    cu_seqlens: Option<Tensor>,
    block_table: Option<Tensor>,
    rotary: Option<(Tensor, Tensor, RotaryLayout)>,
    positions: Option<Tensor>,
    k_scale: Option<Tensor>,
    v_scale: Option<Tensor>,
}

impl Append {
    /// For caches that lie so.
    #[must_use]
    pub fn new(layout: CacheLayout) -> Self {
        Append {
            layout,
            slot_mapping: None,
            cache_lengths: None,
            cu_seqlens: None,
            block_table: None,
            rotary: None,
            positions: None,
            k_scale: None,
            v_scale: None,
        }
    }

    /// i64 `[b, s_new]` or `[total_new]`: page · page_size + row of the page; negative: the row is not written.
    #[must_use]
    pub fn slot_mapping(mut self, slots: &Tensor) -> Self {
        self.slot_mapping = Some(slots.clone());
        self
    }

    /// u32 or i32 `[b]`: row n of sequence i becomes its key number `cache_lengths[i] + n`.
    #[must_use]
    pub fn cache_lengths(mut self, lengths: &Tensor) -> Self {
        self.cache_lengths = Some(lengths.clone());
        self
    }

    /// u32 or i32 `[b + 1]`: the sequences of ragged rows behind lengths, ascending from 0 to total_new.
    #[must_use]
    pub fn cu_seqlens(mut self, offsets: &Tensor) -> Self {
        self.cu_seqlens = Some(offsets.clone());
        self
    }

    /// u32 or i32 `[b, max_pages]`: the sequences' pages. Absent: page i is all of sequence i.
    #[must_use]
    pub fn block_table(mut self, pages: &Tensor) -> Self {
        self.block_table = Some(pages.clone());
        self
    }

    /// The rotary embedding of k and q: cos and sin `[positions, rot/2]`, f32 or k's type.
    #[must_use]
    pub fn rotary(mut self, cos: &Tensor, sin: &Tensor, layout: RotaryLayout) -> Self {
        self.rotary = Some((cos.clone(), sin.clone(), layout));
        self
    }

    /// u32, i32 or i64 `[b, s_new]` or `[total_new]`. Absent: the number that a row gets as a key.
    #[must_use]
    pub fn positions(mut self, positions: &Tensor) -> Self {
        self.positions = Some(positions.clone());
        self
    }

    /// f32 `[1]` or `[h_k]`: the cache of k holds x / scale. Absent: 1.
    #[must_use]
    pub fn k_scale(mut self, scale: &Tensor) -> Self {
        self.k_scale = Some(scale.clone());
        self
    }

    /// f32 `[1]` or `[h_k]`: the cache of v holds x / scale. Absent: 1.
    #[must_use]
    pub fn v_scale(mut self, scale: &Tensor) -> Self {
        self.v_scale = Some(scale.clone());
        self
    }

    /// Rows of k into their cache, in place, turned if there is a rotary embedding.
    ///
    /// Errors: what does not fit, by the argument's name; then nothing is written.
    pub fn write_k(&self, k: &Tensor, k_cache: &Tensor) -> Result<()> {
        k_cache.inplace_op2(k, &Op { append: self, what: What::K })
    }

    /// Rows of v into their cache, in place.
    ///
    /// Errors: as [`write_k`](Append::write_k).
    pub fn write_v(&self, v: &Tensor, v_cache: &Tensor) -> Result<()> {
        v_cache.inplace_op2(v, &Op { append: self, what: What::V })
    }

    /// Rows of q, turned: a new tensor.
    ///
    /// Errors: as [`write_k`](Append::write_k); and no rotary embedding.
    pub fn turn_q(&self, q: &Tensor) -> Result<Tensor> {
        if self.rotary.is_none() {
            bail!("turn_q: there is no rotary embedding; see Append::rotary()")
        }
        let turned = q.zeros_like()?;
        turned.inplace_op2(q, &Op { append: self, what: What::Q })?;
        Ok(turned)
    }

    fn held(&self, what: What) -> Vec<Held<'_, SetOption>> {
        use foveal::DType::{I32, U32};
        let turns = what != What::V;
        let scale = |of: What, tensor| if what == of { tensor } else { None };
        let positions = if turns { self.positions.as_ref() } else { None };
        let options: [(&str, Option<&Tensor>, foveal::DType, SetOption); 7] = [
            ("slot_mapping", self.slot_mapping.as_ref(), U32, |a, t| a.slot_mapping(t)),
            ("cache_lengths", self.cache_lengths.as_ref(), I32, |a, t| a.cache_lengths(t)),
            ("cu_seqlens", self.cu_seqlens.as_ref(), I32, |a, t| a.cu_seqlens(t)),
            ("block_table", self.block_table.as_ref(), U32, |a, t| a.block_table(t)),
            ("positions", positions, I32, |a, t| a.positions(t)),
            ("k_scale", scale(What::K, self.k_scale.as_ref()), U32, |a, t| a.k_scale(t)),
            ("v_scale", scale(What::V, self.v_scale.as_ref()), U32, |a, t| a.v_scale(t)),
        ];
        options
            .into_iter()
            .filter_map(|(name, tensor, unsigned, set)| Some(Held::new(name, tensor?, unsigned, set)))
            .collect()
    }

    fn angles(&self, what: What) -> Option<(Held<'_, ()>, Held<'_, ()>, RotaryLayout)> {
        let (cos, sin, layout) = self.rotary.as_ref().filter(|_| what != What::V)?;
        let lock = |name, tensor| Held::new(name, tensor, foveal::DType::U32, ());
        Some((lock("cos", cos), lock("sin", sin), *layout))
    }
}

type SetOption = for<'a> fn(foveal::Append<'a>, foveal::Tensor<'a>) -> foveal::Append<'a>;

#[derive(Clone, Copy, PartialEq)]
enum What {
    K,
    V,
    Q,
}

struct Op<'a> {
    append: &'a Append,
    what: What,
}

impl Op<'_> {
    fn names(&self) -> (&'static str, &'static str) {
        match self.what {
            What::K => ("k", "k_cache"),
            What::V => ("v", "v_cache"),
            What::Q => ("q", "q_out"),
        }
    }

    /// Dimensions and strides of what is written, as the library has them: [pages, page_size, h_k, d].
    fn target(&self, layout: &Layout) -> (Vec<usize>, Vec<usize>) {
        let (mut dims, mut strides) = (layout.dims().to_vec(), layout.stride().to_vec());
        if self.what == What::Q {
            strides = packed(&dims);
        } else if self.append.layout == CacheLayout::Hnd && dims.len() == 4 {
            dims.swap(1, 2);
            strides.swap(1, 2);
        }
        (dims, strides)
    }

    fn run<'a>(
        &self,
        target: foveal::TensorMut<'a>,
        rows: (Operand<'a>, &Layout),
        held: &'a [Held<'_, SetOption>],
        angles: &'a Option<(Held<'_, ()>, Held<'_, ()>, RotaryLayout)>,
        mut place: Place<'a>,
    ) -> Result<()> {
        let rows = view(self.names().0, rows.0, rows.1, foveal::DType::U32, &mut place)?;
        let append = foveal::Append::new();
        let mut append = match self.what {
            What::K => append.k(rows, target),
            What::V => append.v(rows, target),
            What::Q => append.q(rows, target),
        };
        for option in held {
            let (set, tensor) = option.view(&mut place)?;
            append = set(append, tensor);
        }
        if let Some((cos, sin, layout)) = angles {
            append = append.rotary(cos.view(&mut place)?.1, sin.view(&mut place)?.1, *layout);
        }
        append.run(place.stream()).map_err(wrap)
    }
}

impl InplaceOp2 for Op<'_> {
    fn name(&self) -> &'static str {
        "foveal-append"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, cache_l: &Layout, rows: &CpuStorage, rows_l: &Layout) -> Result<()> {
        let (dims, strides) = self.target(cache_l);
        let target = view_mut(self.names().1, cache, cache_l.start_offset(), &dims, &strides)?;
        let (held, angles) = (self.append.held(self.what), self.append.angles(self.what));
        self.run(target, (Operand::Cpu(rows), rows_l), &held, &angles, Place::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        cache: &mut candle_core::CudaStorage,
        cache_l: &Layout,
        rows: &candle_core::CudaStorage,
        rows_l: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let (dims, strides) = self.target(cache_l);
        let stream = rows.device().cuda_stream();
        let (held, angles) = (self.append.held(self.what), self.append.angles(self.what));
        crate::storage::cuda::with_view_mut(
            self.names().1,
            cache,
            (cache_l.start_offset(), &dims, &strides),
            &stream,
            |target| {
                self.run(target, (Operand::Cuda(rows), rows_l), &held, &angles, Place::on(rows.device(), &stream)?)
            },
        )
    }
}
