use candle_core::{DType, Result, Tensor};
use foveal::{Alignment, Forward};

use crate::forward::{compute, compute_with_lse, workspace_bytes};
use crate::graph::{attention_in_graph, attention_in_graph_with_lse};
use crate::storage::{Held, Place};

/// Attention with foveal's options, on tensors of candle's.
///
/// q `[b, s_q, h_q, d]`, k `[b, s_k, h_k, d]`, v `[b, s_k, h_k, d_v]`; the result `[b, s_q, h_q, d_v]` is contiguous, of
/// q's type: f32 (CPU), bf16 or f16. With [`seqlens`](Attention::seqlens): `[total, h, d]`. `h_q` is a multiple of `h_k`.
/// Of e4m3 (candle's `F8E4M3`) may be k and v alone, on the CPU, or q too, which a GPU takes up to d 128 and without the
/// options of the scores; both with descales or without.
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
///
/// # Gradients
///
/// q, k, v, sinks, bias and slopes have gradients, each where it hangs on a `Var`; they come through the result and through
/// the log-sum-exp, each of which has a backward pass of its own. Between the passes the inputs, the result and the
/// log-sum-exp are kept and nothing else. The same inputs give the same bits. Where nothing hangs on a `Var`, nothing is
/// kept. What has no gradient is refused in the backward pass, by name: keys in pages; e4m3; an f32 result of another q; on
/// a GPU head dimensions beyond 512. Under dropout gradients drop what the forward pass dropped: a state that is a tensor
/// is kept as it is until then.
///
/// ```
/// use candle_core::{DType, Device, Var};
///
/// let x = Var::randn(0f32, 1., (1, 64, 8, 32), &Device::Cpu)?; // [b, s, h, d]
/// let sinks = Var::zeros(8, DType::F32, &Device::Cpu)?;
/// let out = candle_foveal::Attention::new().causal().sinks(&sinks).forward(&x, &x, &x)?;
/// let gradients = out.sqr()?.mean_all()?.backward()?;
/// assert!(gradients.get(&x).is_some() && gradients.get(&sinks).is_some());
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
    pub(crate) alibi_slopes: Option<Tensor>,
    pub(crate) sinks: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
    mask: Option<Tensor>,
    seqlens_q: Option<Tensor>,
    seqlens_k: Option<Tensor>,
    pub(crate) seqused_q: Option<Tensor>,
    pub(crate) seqused_k: Option<Tensor>,
    block_table: Option<Tensor>,
    page_indptr: Option<Tensor>,
    page_indices: Option<Tensor>,
    query_offset: Option<Tensor>,
    tree_mask: Option<Tensor>,
    q_descale: Option<Tensor>,
    k_descale: Option<Tensor>,
    v_descale: Option<Tensor>,
    dropout_p: f32,
    seed_and_offset: Option<[u64; 2]>,
    dropout_state: Option<Tensor>, // in place of them
    workspace: Option<Tensor>,
    out_dtype: Option<DType>,
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

    /// Only the first `seqused_q[i]` queries of sequence i take part; behind them the result is 0 and the log-sum-exp −∞.
    /// u32 or i32 `[b]`.
    #[must_use]
    pub fn seqused_q(mut self, lengths: &Tensor) -> Self {
        self.seqused_q = Some(lengths.clone());
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

    /// Pages as lists, in place of [`block_table`](Attention::block_table): a sequence's are `indices[indptr[i]]` to
    /// `indices[indptr[i + 1] − 1]`. Both u32 or i32, indptr `[b + 1]`.
    #[must_use]
    pub fn pages(mut self, indptr: &Tensor, indices: &Tensor) -> Self {
        (self.page_indptr, self.page_indices) = (Some(indptr.clone()), Some(indices.clone()));
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

    /// f32 `[b, h_k]`, strides 0 allowed: what an element of q in e4m3 is multiplied by. Absent: 1.
    #[must_use]
    pub fn q_descale(mut self, descale: &Tensor) -> Self {
        self.q_descale = Some(descale.clone());
        self
    }

    /// The same of k; or each row's own, of the shape of k of rank 4 without d, such as `[pages, page_size, h_k]`.
    #[must_use]
    pub fn k_descale(mut self, descale: &Tensor) -> Self {
        self.k_descale = Some(descale.clone());
        self
    }

    /// The same of v.
    #[must_use]
    pub fn v_descale(mut self, descale: &Tensor) -> Self {
        self.v_descale = Some(descale.clone());
        self
    }

    /// A weight of the softmax is dropped with probability `p`, in [0, 1), and the others are divided by 1 − p; the
    /// log-sum-exp is that without dropout. Which are dropped follows from `state`, any seed and offset, and from the
    /// weight's sequence, head, query and key alone. On the CPU: a GPU would read the state in its own memory, and refuses it.
    #[must_use]
    pub fn dropout(mut self, p: f32, state: [u64; 2]) -> Self {
        (self.dropout_p, self.seed_and_offset, self.dropout_state) = (p, Some(state), None);
        self
    }

    /// [`dropout`](Attention::dropout) with a state that is a tensor on q's device, i64 `[2]`: the bits of seed and offset.
    #[must_use]
    pub fn dropout_state(mut self, p: f32, state: &Tensor) -> Self {
        (self.dropout_p, self.seed_and_offset, self.dropout_state) = (p, None, Some(state.clone()));
        self
    }

    /// Memory for intermediate results of calls with few queries on a GPU (decoding), which are slow without where
    /// sequences are few and long: u8, contiguous, made by `Tensor::zeros` once, of at least
    /// [`workspace_bytes`](Attention::workspace_bytes), and kept; nothing but calls may write it. One serves calls of all
    /// shapes, on one stream alone. A CPU needs none, and leaves one of its own memory as it is; an empty one is none.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    ///
    /// let q = Tensor::zeros((1, 1, 8, 128), DType::BF16, &Device::Cpu)?;
    /// let cache = Tensor::zeros((1, 1024, 2, 128), DType::BF16, &Device::Cpu)?;
    /// let attention = candle_foveal::Attention::new();
    /// let bytes = attention.workspace_bytes(&q, &cache, &cache)?;
    /// let attention = attention.workspace(&Tensor::zeros(bytes, DType::U8, q.device())?);
    /// let out = attention.forward(&q, &cache, &cache)?; // as often as wanted
    /// # assert_eq!(out.dims(), q.dims());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    #[must_use]
    pub fn workspace(mut self, workspace: &Tensor) -> Self {
        self.workspace = Some(workspace.clone());
        self
    }

    /// The result's type, which is else q's, or bf16 of an e4m3 q: bf16 or f16 of that; f32, unrounded for
    /// [`merge`](crate::merge()), of every q.
    #[must_use]
    pub fn out_dtype(mut self, dtype: DType) -> Self {
        self.out_dtype = Some(dtype);
        self
    }

    /// Bytes of [`workspace`](Attention::workspace) that make a call of these shapes fast; 0 where it needs none.
    ///
    /// Errors: as [`forward`](Attention::forward).
    pub fn workspace_bytes(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<usize> {
        workspace_bytes(self, q, k, v)
    }

    /// The result, `[b, s_q, h_q, d_v]` or `[total_q, h_q, d_v]`. A row that sees no key is 0.
    ///
    /// Errors: what cannot be computed exactly, by the argument's name.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self.is_tracked(q, k, v) {
            return attention_in_graph(self, q, k, v);
        }
        compute(self, q, k, v)
    }

    /// The result and the log-sum-exp: f32 `[b, h_q, s_q]` or `[h_q, total_q]`, natural logarithm; −∞ for a row that
    /// sees no key.
    ///
    /// Errors: as [`forward`](Attention::forward).
    pub fn forward_with_lse(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.is_tracked(q, k, v) {
            return attention_in_graph_with_lse(self, q, k, v);
        }
        compute_with_lse(self, q, k, v)
    }

    /// May a gradient be asked for?
    fn is_tracked(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
        let options = [&self.sinks, &self.bias, &self.alibi_slopes];
        [q, k, v].into_iter().chain(options.into_iter().flatten()).any(Tensor::track_op)
    }

    /// The tensors among the options, locked for reading, each with the option that it is for.
    pub(crate) fn held(&self) -> Vec<Held<'_, SetOption>> {
        use foveal::DType::{I32, U32};
        let options: [(&str, Option<&Tensor>, foveal::DType, SetOption); 17] = [
            ("alibi_slopes", self.alibi_slopes.as_ref(), U32, |f, t, _| f.alibi_slopes(t)),
            ("sinks", self.sinks.as_ref(), U32, |f, t, _| f.sinks(t)),
            ("bias", self.bias.as_ref(), U32, |f, t, _| f.bias(t)),
            ("mask", self.mask.as_ref(), U32, |f, t, _| f.mask(t)),
            ("seqlens_q", self.seqlens_q.as_ref(), I32, |f, t, _| f.cu_seqlens_q(t)),
            ("seqlens_k", self.seqlens_k.as_ref(), I32, |f, t, _| f.cu_seqlens_k(t)),
            ("seqused_q", self.seqused_q.as_ref(), I32, |f, t, _| f.seqused_q(t)),
            ("seqused_k", self.seqused_k.as_ref(), I32, |f, t, _| f.seqused_k(t)),
            ("block_table", self.block_table.as_ref(), U32, |f, t, _| f.block_table(t)),
            ("page_indptr", self.page_indptr.as_ref(), I32, |f, t, _| f.page_indptr(t)),
            ("page_indices", self.page_indices.as_ref(), U32, |f, t, _| f.page_indices(t)),
            ("query_offset", self.query_offset.as_ref(), I32, |f, t, _| f.query_offset(t)),
            ("tree_mask", self.tree_mask.as_ref(), U32, |f, t, _| f.tree_mask(t)),
            ("q_descale", self.q_descale.as_ref(), U32, |f, t, _| f.q_descale(t)),
            ("k_descale", self.k_descale.as_ref(), U32, |f, t, _| f.k_descale(t)),
            ("v_descale", self.v_descale.as_ref(), U32, |f, t, _| f.v_descale(t)),
            ("dropout_state", self.dropout_state.as_ref(), U32, |f, t, p| f.dropout_state(p, t)),
        ];
        options
            .into_iter()
            .filter_map(|(name, tensor, unsigned, set)| Some(Held::new(name, tensor?, unsigned, set)))
            .collect()
    }

    /// Memory that is written between calls and belongs to the caller.
    pub(crate) fn held_workspace(&self) -> Option<Held<'_, ()>> {
        Some(Held::new("workspace", self.workspace.as_ref()?, foveal::DType::U32, ()))
    }

    /// The result's type, and the argument that it comes from.
    pub(crate) fn dtype_of_result(&self, q: DType) -> (&'static str, DType) {
        match (self.out_dtype, q) {
            (Some(dtype), _) => ("out_dtype", dtype),
            (None, DType::F8E4M3) => ("q", DType::BF16),
            (None, dtype) => ("q", dtype),
        }
    }

    /// `forward` with all options but the workspace.
    pub(crate) fn with_options<'a>(
        &self,
        mut forward: Forward<'a>,
        held: &'a [Held<'_, SetOption>],
        place: &mut Place<'a>,
    ) -> Result<Forward<'a>> {
        forward = forward
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
        if let Some(state) = self.seed_and_offset {
            forward = forward.dropout(self.dropout_p, state);
        }
        for option in held {
            let (set, tensor) = option.view(place)?;
            forward = set(forward, tensor, self.dropout_p);
        }
        Ok(forward)
    }
}

/// The number is the probability of dropout.
pub(crate) type SetOption = for<'a> fn(Forward<'a>, foveal::Tensor<'a>, f32) -> Forward<'a>;
