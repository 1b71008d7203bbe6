use std::marker::PhantomData;

use foveal_sys as sys;

use crate::error::check;
use crate::place::Places;
use crate::{Alignment, Backend, DType, Error, Plan, Result, Stream, Tensor, TensorMut, Workspace};

/// A window without limit on a side, and any so wide that i64 cannot say it.
fn window_side(width: Option<usize>) -> i64 {
    width.map_or(i64::from(sys::FOVEAL_UNLIMITED), |width| i64::try_from(width).unwrap_or(i64::MAX))
}

/// One forward call: `out` (and the log-sum-exp) from q, k and v. Made by [`Forward::new`], refined by its options,
/// computed by [`Forward::run`] as often as wanted.
///
/// The score of query i and key j is, in this order: `x = scale · q_i·k_j`; `x = c · tanh(x / c)` with a softcap;
/// `x −= slope · |i + off − j|` with ALiBi slopes; plus the bias; then window, chunks and mask hide keys. A sink adds
/// `exp(sink)` to the denominator alone. A row that sees no key gets `out = 0` and `lse = −∞` (with a sink:
/// `lse = sink`).
///
/// Every tensor may have any strides but the last, which is 1; what the hardware cannot address (on a GPU: bases and
/// strides that are no multiples of 16 bytes) is refused by name.
#[derive(Debug)]
pub struct Forward<'a> {
    args: sys::foveal_forward_args,
    pub(crate) places: Places,
    pub(crate) backend: Backend,
    causal: bool,
    right: Option<usize>,
    refused: Option<Error>,
    has_workspace: bool,
    dropout_state: Option<[u64; 2]>,
    was_run: bool,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the pointers are those of Tensor, TensorMut and Workspace, whose memory every thread may use.
unsafe impl Send for Forward<'_> {}
// SAFETY: as above; run() takes &mut self.
unsafe impl Sync for Forward<'_> {}

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

impl<'a> Forward<'a> {
    /// q `[b, s_q, h_q, d]`, k `[b, s_k, h_k, d]`, v `[b, s_k, h_k, d_v]`, out `[b, s_q, h_q, d_v]`, of one type:
    /// f32 (CPU), bf16 or f16. On the CPU k and v may be e4m3 beside any q, and the result is, bit for bit, that of k
    /// and v dequantised and rounded to q's type; of q in e4m3 too, out is bf16 or f16. Varlen (see [`cu_seqlens`](Forward::cu_seqlens)): q `[total_q, h_q, d]` and so on.
    /// `out` shares no byte with what is read.
    #[must_use]
    pub fn new(q: Tensor<'a>, k: Tensor<'a>, v: Tensor<'a>, out: TensorMut<'a>) -> Self {
        let mut args = sys::foveal_forward_args::new();
        let mut places = Places::default();
        for (name, raw, memory) in
            [("q", &q.raw, q.memory), ("k", &k.raw, k.memory), ("v", &v.raw, v.memory), ("out", &out.raw, out.memory)]
        {
            places.add(name, raw, memory);
        }
        (args.q, args.k, args.v, args.out) = (q.raw, k.raw, v.raw, out.raw);
        Self {
            args,
            places,
            backend: Backend::Auto,
            causal: false,
            right: None,
            refused: None,
            has_workspace: false,
            dropout_state: None,
            was_run: false,
            life: PhantomData,
        }
    }

    /// A call that was run before, whose out and log-sum-exp are kept: for [`Backward`](crate::Backward), which reads
    /// them. The options are to be set as they were; running it once more is refused.
    #[must_use]
    pub fn was_run(q: Tensor<'a>, k: Tensor<'a>, v: Tensor<'a>, out: Tensor<'a>, lse: Tensor<'a>) -> Self {
        let mut forward = Self::new(q, k, v, out.never_written()).lse(lse.never_written());
        forward.was_run = true;
        forward
    }

    /// Query i sees key j iff `j ≤ i + off`: `right = 0`. May be combined with a left limit of
    /// [`window`](Forward::window), and with no other right one.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Query i sees key j iff `i + off − left ≤ j ≤ i + off + right`, both ends included; `None`: no limit on that side.
    #[must_use]
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.args.window_left = window_side(left);
        self.right = right;
        self
    }

    /// What `off` is where s_q and s_k differ. Default: bottom-right.
    #[must_use]
    pub fn alignment(mut self, alignment: Alignment) -> Self {
        self.args.alignment = alignment.raw();
        self
    }

    /// Positions are cut into chunks of so many; a query sees keys of its own chunk only. 0 (the default): no chunks.
    #[must_use]
    pub fn chunk(mut self, positions: usize) -> Self {
        self.args.chunk = i64::try_from(positions).unwrap_or(i64::MAX);
        self
    }

    /// The factor on Q·Kᵀ. Default: 1/√d. NaN is refused.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        if scale.is_nan() {
            self.refused.get_or_insert_with(|| Error::invalid("scale is NaN"));
        }
        self.args.scale = scale;
        self
    }

    /// `c > 0`: the score x becomes `c · tanh(x / c)`. 0 (the default): none.
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.args.softcap = softcap;
        self
    }

    /// A weight of the softmax is dropped with probability `p`, in [0, 1), and the others are divided by 1 − p; the
    /// log-sum-exp is that without dropout. Which are dropped follows from `state`, any seed and offset, and from the
    /// weight's sequence, head, query and key alone: a gradient needs the same state. Default: none; so it is of p = 0.
    /// On the CPU: a GPU would read the state in its own memory.
    #[must_use]
    pub fn dropout(mut self, p: f32, state: [u64; 2]) -> Self {
        (self.args.dropout_p, self.args.dropout_state) = (p, std::ptr::null());
        self.dropout_state = (p != 0.0).then_some(state);
        self
    }

    /// [`dropout`](Forward::dropout) whose state, i64 `[2]` of any values, lies where q lies and is read when the call
    /// computes: bits of the seed and the offset. sm90 has no dropout yet and says so.
    #[must_use]
    pub fn dropout_state(mut self, p: f32, state: Tensor<'a>) -> Self {
        if (state.raw.dtype, state.shape(), state.strides()) != (DType::I64.raw(), &[2], &[1]) {
            let (shape, strides) = (state.shape(), state.strides());
            self.refused.get_or_insert_with(|| {
                Error::invalid(format!("dropout_state has shape {shape:?} and strides {strides:?}; i64 [2] is needed"))
            });
        }
        self.places.add("dropout_state", &state.raw, state.memory);
        let data = if p == 0.0 { std::ptr::null() } else { state.raw.data.cast_const().cast() };
        (self.args.dropout_p, self.args.dropout_state, self.dropout_state) = (p, data, None);
        self
    }

    /// Sequences that lie one after the other: offsets i32 `[b + 1]` that ascend from 0 to total_q and total_k.
    #[must_use]
    pub fn cu_seqlens(self, q: Tensor<'a>, k: Tensor<'a>) -> Self {
        self.cu_seqlens_q(q).cu_seqlens_k(k)
    }

    /// The log-sum-exp is written as well: f32 `[b, h_q, s_q]`, varlen `[h_q, total_q]`; natural logarithm.
    #[must_use]
    pub fn lse(mut self, lse: TensorMut<'a>) -> Self {
        self.places.add("lse", &lse.raw, lse.memory);
        self.args.lse = lse.raw;
        self
    }

    tensor_options! {
        /// Offsets of the queries' sequences alone; see [`cu_seqlens`](Forward::cu_seqlens).
        cu_seqlens_q;
        /// Offsets of the keys' sequences alone; see [`cu_seqlens`](Forward::cu_seqlens).
        cu_seqlens_k;
        /// Only the first `seqused_q[i]` rows of sequence i take part; rows of out and lse behind them are not written.
        /// i32 `[b]`.
        seqused_q;
        /// Only the first `seqused_k[i]` keys of sequence i take part. i32 `[b]`.
        seqused_k;
        /// f32 `[h_q]` or `[b, h_q]`: the score is lowered by `slope · |i + off − j|`.
        alibi_slopes;
        /// f32 `[h_q]`: a logit without a value, in natural units (not scaled).
        sinks;
        /// Dense only; of q's type or f32, of a shape that broadcasts to `[b, h_q, s_q, s_k]` as in NumPy. Added to the
        /// score; a key whose bias is −∞ is not seen.
        bias;
        /// Dense only; bool, of a shape that broadcasts to `[b, h_q, s_q, s_k]`. Where it is false, the key is not seen.
        mask;
        /// i32 or u32 `[b, max_pages]`: k is `[pages, page_size, h_k, d]`, v `[pages, page_size, h_k, d_v]`, and key j of
        /// sequence i is row `j % page_size` of page `block_table[i, j / page_size]`. Needs
        /// [`seqused_k`](Forward::seqused_k). Entries behind those of a sequence's keys are not read.
        block_table;
        /// The offsets of [`pages`](Forward::pages) alone.
        page_indptr;
        /// The page numbers of [`pages`](Forward::pages) alone.
        page_indices;
        /// i32 `[b]`: `off` of each sequence, of any sign, in place of what the alignment says, which is then the default.
        query_offset;
        /// u32 `[b, s_q, words]`, varlen `[total_q, words]`: which of a sequence's last keys a query sees, as the nodes of
        /// a speculative tree do. Of a sequence with n queries, bit `m % 32` of a query's word `m / 32` is for key
        /// `s_k − n + m`.
        tree_mask;
        /// f32 `[b, h_k]`, strides 0 allowed: what an element of q in e4m3 is multiplied by. Absent: 1.
        q_descale;
        /// The same of k; or each row's own, of the shape of k of rank 4 without d, such as `[pages, page_size, h_k]`.
        k_descale;
        /// The same of v.
        v_descale;
    }

    /// Pages as lists, in place of [`block_table`](Forward::block_table): a sequence's are
    /// `indices[indptr[i]]` to `indices[indptr[i + 1] − 1]`. indptr i32 `[b + 1]`, indices i32 or u32 `[n]`.
    #[must_use]
    pub fn pages(self, indptr: Tensor<'a>, indices: Tensor<'a>) -> Self {
        self.page_indptr(indptr).page_indices(indices)
    }

    /// Memory for intermediate results on a GPU; [`Plan::workspace_bytes`] says how much makes the call fast. Without
    /// it a call computes all the same.
    #[must_use]
    pub fn workspace(mut self, workspace: Workspace<'a>) -> Self {
        self.args.workspace = workspace.data;
        self.args.workspace_bytes = workspace.bytes;
        self.has_workspace = true;
        self
    }

    /// Who computes. Default: where the tensors lie.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// The C structure, for `backend`.
    pub(crate) fn args(&self, backend: Backend) -> Result<sys::foveal_forward_args> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        if self.has_workspace && backend == Backend::Cpu {
            return Err(Error::invalid("workspace lies in device memory, which the backend Cpu does not compute with"));
        }
        if self.dropout_state.is_some() && backend == Backend::Sm90 {
            let reason = "dropout_state lies in host memory, which the backend Sm90 does not read";
            return Err(Error::Unsupported(reason.into()));
        }
        let mut args = self.args;
        args.backend = backend.raw();
        if let Some(state) = &self.dropout_state {
            args.dropout_state = state.as_ptr();
        }
        args.window_right = match (self.causal, self.right) {
            (true, None | Some(0)) => 0,
            (true, Some(right)) => {
                return Err(Error::invalid(format!("causal and right = {right} contradict each other")));
            }
            (false, right) => window_side(right),
        };
        Ok(args)
    }

    /// The C structure for a call that writes.
    pub(crate) fn args_to_run(&self) -> Result<sys::foveal_forward_args> {
        if self.was_run {
            return Err(Error::invalid("out and lse are read alone: this call was made by was_run()"));
        }
        self.args(self.places.backend_with_data(self.backend)?)
    }

    /// Computes. On a GPU the call returns at once, and the result is there when the work on `stream` is done.
    ///
    /// Errors: every kind; the message names the argument.
    pub fn run(&mut self, stream: Stream) -> Result<()> {
        let args = self.args_to_run()?;
        // SAFETY: args is initialised, and its tensors view memory that `backend` can reach, within its bounds (or the
        // caller of from_raw() vouches for it); what is written is borrowed for 'a by nobody else.
        check(unsafe { sys::foveal_forward(&args, stream.raw()) })
    }

    /// Would [`run`](Forward::run) accept these shapes, strides, types and options? No GPU is needed, and no data looked
    /// at; tensors may be `described()`, and then [`Backend::Auto`] asks whether any backend of this build would.
    ///
    /// Errors: the reason why not.
    pub fn supports(&self) -> Result<()> {
        let args = self.args(self.places.backend(self.backend)?)?;
        // SAFETY: args is initialised, and no data pointer is followed.
        check(unsafe { sys::foveal_supports(&args) })
    }

    /// Which kernel, tile, grid and order of work the problem gets: for CUDA device `device`, or for a generic H200
    /// (`None`, no GPU needed). Tensors may be `described()`; then a [`backend`](Forward::backend) has to be named.
    ///
    /// Errors: those of [`run`](Forward::run).
    pub fn plan(&self, device: Option<u32>) -> Result<Plan> {
        let args = self.args(self.places.backend(self.backend)?)?;
        let device = match device {
            None => -1,
            Some(number) => {
                i32::try_from(number).map_err(|_| Error::invalid(format!("there is no CUDA device {number}")))?
            }
        };
        let mut plan = std::ptr::null_mut();
        // SAFETY: args is initialised, no data pointer is followed, and `plan` can be written.
        check(unsafe { sys::foveal_plan_create(&args, device, &mut plan) })?;
        Ok(Plan(plan))
    }
}
