use std::sync::{Arc, Mutex};

use candle_core::{bail, CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use foveal::{Alignment, Forward};

use crate::storage::{new_cpu_storage, packed, view, view_mut, wrap, Held, Operand, Place};

/// Attention with every option of foveal's, on tensors of candle's.
///
/// q `[b, s_q, h_q, d]`, k `[b, s_k, h_k, d]`, v `[b, s_k, h_k, d_v]`; the result `[b, s_q, h_q, d_v]` is contiguous, of
/// q's type: f32 (CPU), bf16 or f16. With [`seqlens`](Attention::seqlens): `[total, h, d]`. `h_q` is a multiple of `h_k`.
/// Views are taken as they lie (transposed, narrowed, broadcast), but for the last dimension's stride, which is 1.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// let q = Tensor::randn(0f32, 1., (1, 6, 4, 16), &Device::Cpu)?;
/// let kv = Tensor::randn(0f32, 1., (1, 9, 2, 16), &Device::Cpu)?.to_dtype(DType::F32)?;
/// let (out, lse) = candle_foveal::Attention::new().causal().softcap(30.).forward_with_lse(&q, &kv, &kv)?;
/// assert_eq!((out.dims(), lse.dims()), (&[1, 6, 4, 16][..], &[1, 4, 6][..]));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attention {
    scale: Option<f32>,
    causal: bool,
    left: Option<usize>,
    right: Option<usize>,
    top_left: bool,
    chunk: usize,
    softcap: f32,
    alibi_slopes: Option<Tensor>,
    sinks: Option<Tensor>,
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    seqlens_q: Option<Tensor>,
    seqlens_k: Option<Tensor>,
    seqused_k: Option<Tensor>,
    block_table: Option<Tensor>,
    query_offset: Option<Tensor>,
    tree_mask: Option<Tensor>,
}

impl Attention {
    /// Plain attention, unmasked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The factor on Q·Kᵀ. Default: 1/√d. NaN is refused.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Query i sees key j iff `j ≤ i + off`. May be combined with a left limit of [`window`](Attention::window) alone.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Query i sees key j iff `i + off − left ≤ j ≤ i + off + right`, both ends included; `None`: no limit on that side.
    #[must_use]
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        (self.left, self.right) = (left, right);
        self
    }

    /// `off = 0`: the first query stands at the first key. Default: `off = s_k − s_q`, the last at the last.
    #[must_use]
    pub fn top_left(mut self) -> Self {
        self.top_left = true;
        self
    }

    /// A query sees keys of its own chunk of so many positions only. 0 (the default): no chunks.
    #[must_use]
    pub fn chunk(mut self, positions: usize) -> Self {
        self.chunk = positions;
        self
    }

    /// `c > 0`: the score x becomes `c · tanh(x / c)`. 0 (the default): none.
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = softcap;
        self
    }

    /// f32 `[h_q]` or `[b, h_q]`: the score is lowered by `slope · |i + off − j|`.
    #[must_use]
    pub fn alibi_slopes(mut self, slopes: &Tensor) -> Self {
        self.alibi_slopes = Some(slopes.clone());
        self
    }

    /// f32 `[h_q]`: a logit without a value, in natural units: adds `exp(sink)` to the denominator alone.
    #[must_use]
    pub fn sinks(mut self, sinks: &Tensor) -> Self {
        self.sinks = Some(sinks.clone());
        self
    }

    /// Added to the scores; of q's type or f32, of a shape that broadcasts to `[b, h_q, s_q, s_k]`. −∞ hides a key.
    #[must_use]
    pub fn bias(mut self, bias: &Tensor) -> Self {
        self.bias = Some(bias.clone());
        self
    }

    /// u8, of a shape that broadcasts to `[b, h_q, s_q, s_k]`: 0 hides a key.
    #[must_use]
    pub fn mask(mut self, mask: &Tensor) -> Self {
        self.mask = Some(mask.clone());
        self
    }

    /// Sequences that lie one after the other: offsets, u32 or i32 `[b + 1]`, that ascend from 0 to the totals.
    #[must_use]
    pub fn seqlens(mut self, q: &Tensor, k: &Tensor) -> Self {
        (self.seqlens_q, self.seqlens_k) = (Some(q.clone()), Some(k.clone()));
        self
    }

    /// Only the first `seqused_k[i]` keys of sequence i take part. u32 or i32 `[b]`.
    #[must_use]
    pub fn seqused_k(mut self, lengths: &Tensor) -> Self {
        self.seqused_k = Some(lengths.clone());
        self
    }

    /// Queries alone lie one after the other: offsets, u32 or i32 `[b + 1]`. For a paged or a dense cache, whose lengths
    /// are [`seqused_k`](Attention::seqused_k).
    #[must_use]
    pub fn seqlens_q(mut self, q: &Tensor) -> Self {
        self.seqlens_q = Some(q.clone());
        self
    }

    /// k and v are caches of pages, `[pages, page_size, h_k, d]` (of `[pages, h_k, page_size, d]` a transposed view), and
    /// this says which pages are a sequence's: u32 or i32 `[b, max_pages]`. Needs [`seqused_k`](Attention::seqused_k).
    /// A page number that is out of range is refused on the CPU, and on a GPU the caller's error.
    #[must_use]
    pub fn block_table(mut self, pages: &Tensor) -> Self {
        self.block_table = Some(pages.clone());
        self
    }

    /// i32 `[b]`: `off` of each sequence, of any sign, in place of what the alignment says.
    #[must_use]
    pub fn query_offset(mut self, offsets: &Tensor) -> Self {
        self.query_offset = Some(offsets.clone());
        self
    }

    /// u32 `[b, s_q, words]` or `[total_q, words]`: which of a sequence's last keys a query sees, as the nodes of a
    /// speculative tree do; see `foveal::Forward::tree_mask`.
    #[must_use]
    pub fn tree_mask(mut self, words: &Tensor) -> Self {
        self.tree_mask = Some(words.clone());
        self
    }

    /// The result, `[b, s_q, h_q, d_v]` or `[total_q, h_q, d_v]`. A row that sees no key is 0.
    ///
    /// Errors: what cannot be computed exactly, by the argument's name; and there is no backward yet.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3(k, v, Op { attention: self.clone(), lse: None })
    }

    /// The result and the log-sum-exp: f32 `[b, h_q, s_q]` or `[h_q, total_q]`, natural logarithm; −∞ for a row that
    /// sees no key.
    ///
    /// Errors: as [`forward`](Attention::forward).
    pub fn forward_with_lse(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let slot = Slot::default();
        let out = q.apply_op3(k, v, Op { attention: self.clone(), lse: Some(slot.clone()) })?;
        Ok((out, slot.into_tensor(q, k, v)?))
    }

    /// The tensors among the options, locked for reading, each with the option that it is for.
    fn held(&self) -> Vec<Held<'_, SetOption>> {
        use foveal::DType::{I32, U32};
        let options: [(&str, Option<&Tensor>, foveal::DType, SetOption); 10] = [
            ("alibi_slopes", self.alibi_slopes.as_ref(), U32, |f, t| f.alibi_slopes(t)),
            ("sinks", self.sinks.as_ref(), U32, |f, t| f.sinks(t)),
            ("bias", self.bias.as_ref(), U32, |f, t| f.bias(t)),
            ("mask", self.mask.as_ref(), U32, |f, t| f.mask(t)),
            ("seqlens_q", self.seqlens_q.as_ref(), I32, |f, t| f.cu_seqlens_q(t)),
            ("seqlens_k", self.seqlens_k.as_ref(), I32, |f, t| f.cu_seqlens_k(t)),
            ("seqused_k", self.seqused_k.as_ref(), I32, |f, t| f.seqused_k(t)),
            ("block_table", self.block_table.as_ref(), U32, |f, t| f.block_table(t)),
            ("query_offset", self.query_offset.as_ref(), I32, |f, t| f.query_offset(t)),
            ("tree_mask", self.tree_mask.as_ref(), U32, |f, t| f.tree_mask(t)),
        ];
        options
            .into_iter()
            .filter_map(|(name, tensor, unsigned, set)| Some(Held::new(name, tensor?, unsigned, set)))
            .collect()
    }

    fn run<'a>(
        &self,
        inputs: [(Operand<'a>, &Layout); 3],
        out: foveal::TensorMut<'a>,
        lse: Option<foveal::TensorMut<'a>>,
        held: &'a [Held<'_, SetOption>],
        mut place: Place<'a>,
    ) -> Result<()> {
        let mut input = |name, (operand, layout): (Operand<'a>, &Layout)| {
            view(name, operand, layout, foveal::DType::U32, &mut place)
        };
        let [q, k, v] = inputs;
        let mut forward = Forward::new(input("q", q)?, input("k", k)?, input("v", v)?, out)
            .window(self.left, self.right)
            .chunk(self.chunk)
            .softcap(self.softcap)
            .alignment(if self.top_left { Alignment::TopLeft } else { Alignment::BottomRight });
        if self.causal {
            forward = forward.causal();
        }
        if let Some(scale) = self.scale {
            forward = forward.scale(scale);
        }
        if let Some(lse) = lse {
            forward = forward.lse(lse);
        }
        for option in held {
            let (set, tensor) = option.view(&mut place)?;
            forward = set(forward, tensor);
        }
        forward.run(place.stream()).map_err(wrap)
    }
}

type SetOption = for<'a> fn(Forward<'a>, foveal::Tensor<'a>) -> Forward<'a>;

/// A result beside the one that candle's operations return.
#[derive(Clone, Default)]
pub(crate) struct Slot {
    cpu: Arc<Mutex<Option<(CpuStorage, Shape)>>>,
    cuda: Arc<Mutex<Option<(CudaStorage, Shape)>>>,
}

impl Slot {
    pub(crate) fn put_cpu(&self, storage: CpuStorage, shape: Shape) {
        *self.cpu.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some((storage, shape));
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn put_cuda(&self, storage: CudaStorage, shape: Shape) {
        *self.cuda.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some((storage, shape));
    }

    /// A tensor of what was put here. It hangs on its inputs in the graph, so that a backward pass through it is refused
    /// and not silently without gradient.
    pub(crate) fn into_tensor(self, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
        a.apply_op3(b, c, self)
    }
}

fn taken<S>(slot: &Mutex<Option<(S, Shape)>>) -> Result<(S, Shape)> {
    match slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
        Some(result) => Ok(result),
        None => bail!("foveal: a result that was not put there; please report this"),
    }
}

impl CustomOp3 for Slot {
    fn name(&self) -> &'static str {
        "foveal-second-result"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        taken(&self.cpu)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        taken(&self.cuda)
    }
}

struct Op {
    attention: Attention,
    lse: Option<Slot>,
}

/// Shapes of out and lse. Wrong ranks are given shapes as well: the library refuses them by name.
fn result_shapes(q: &Layout, v: &Layout) -> (Vec<usize>, Vec<usize>) {
    let mut out = q.dims().to_vec();
    if let (Some(last), Some(&channels)) = (out.last_mut(), v.dims().last()) {
        *last = channels;
    }
    let lse = match *q.dims() {
        [b, s, h, _] => vec![b, h, s],
        [total, h, _] => vec![h, total],
        _ => q.dims().to_vec(),
    };
    (out, lse)
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "foveal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (out_dims, lse_dims) = result_shapes(q_l, v_l);
        let mut out = new_cpu_storage("q", q.dtype(), out_dims.iter().product())?;
        let lse_elements = if self.lse.is_some() { lse_dims.iter().product() } else { 0 };
        let mut lse = new_cpu_storage("lse", DType::F32, lse_elements)?;
        let held = self.attention.held();
        let out_view = view_mut("out", &mut out, 0, &out_dims, &packed(&out_dims))?;
        let lse_view = match &self.lse {
            Some(_) => Some(view_mut("lse", &mut lse, 0, &lse_dims, &packed(&lse_dims))?),
            None => None,
        };
        let inputs = [(Operand::Cpu(q), q_l), (Operand::Cpu(k), k_l), (Operand::Cpu(v), v_l)];
        self.attention.run(inputs, out_view, lse_view, &held, Place::Cpu)?;
        if let Some(slot) = &self.lse {
            slot.put_cpu(lse, lse_dims.into());
        }
        Ok((out, out_dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_l: &Layout,
        k: &CudaStorage,
        k_l: &Layout,
        v: &CudaStorage,
        v_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use crate::storage::cuda::{new_storage, with_view_mut};
        use candle_core::backend::BackendStorage;
        let (out_dims, lse_dims) = result_shapes(q_l, v_l);
        let (out_strides, lse_strides) = (packed(&out_dims), packed(&lse_dims));
        let stream = q.device().cuda_stream();
        let held = self.attention.held();
        let run = |out: foveal::TensorMut<'_>, lse: Option<foveal::TensorMut<'_>>| {
            let inputs = [(Operand::Cuda(q), q_l), (Operand::Cuda(k), k_l), (Operand::Cuda(v), v_l)];
            self.attention.run(inputs, out, lse, &held, Place::Cuda { stream: &stream, reads: Vec::new() })
        };
        let mut out = new_storage("q", q.dtype(), out_dims.iter().product(), q.device())?;
        match &self.lse {
            None => with_view_mut("out", &mut out, (0, &out_dims, &out_strides), &stream, |out| run(out, None))?,
            Some(slot) => {
                let mut lse = new_storage("lse", DType::F32, lse_dims.iter().product(), q.device())?;
                with_view_mut("out", &mut out, (0, &out_dims, &out_strides), &stream, |out| {
                    with_view_mut("lse", &mut lse, (0, &lse_dims, &lse_strides), &stream, |lse| run(out, Some(lse)))
                })?;
                slot.put_cuda(lse, lse_dims.into());
            }
        }
        Ok((out, out_dims.into()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        bail!("foveal has no backward yet: q, k or v requires a gradient; detach() them, or use candle's operations")
    }
}
