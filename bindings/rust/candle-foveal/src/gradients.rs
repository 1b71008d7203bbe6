//! The backward pass, of which the graph knows nothing.

use candle_core::{bail, CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use foveal::{Backward, Forward};

use crate::attention::SetOption;
use crate::forward::views;
use crate::graph::{stand_in, Call, Gradients, Slot};
use crate::storage::{new_cpu_storage, packed, view_mut, wrap, Held, Operand, Place};

/// The gradients of those arguments that hang on a variable, contiguous and of the arguments' shapes and types.
///
/// Errors: what has no gradient, by the argument's name.
pub(crate) fn gradients(
    call: &Call,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    dlse: Option<&Tensor>,
) -> Result<Gradients> {
    let wanted = call.arguments().map(|argument| argument.filter(|tensor| tensor.track_op()));
    if wanted.iter().all(Option::is_none) {
        return Ok(Default::default());
    }
    let slots: [Slot; 6] = Default::default();
    let [q, k, v] = &call.inputs;
    q.apply_op3_no_bwd(k, v, &Op { call, kept: [Some(out), Some(lse), Some(dout), dlse], wanted, slots: &slots })?;
    let mut gradients = Gradients::default();
    for ((gradient, slot), wanted) in gradients.iter_mut().zip(slots).zip(wanted) {
        if wanted.is_some() {
            *gradient = Some(slot.into_tensor(q)?);
        }
    }
    Ok(gradients)
}

struct Op<'o> {
    call: &'o Call,
    kept: [Option<&'o Tensor>; 4], // out, lse, dout, dlse
    wanted: [Option<&'o Tensor>; 6],
    slots: &'o [Slot; 6],
}

type SetGradient = for<'f, 'a> fn(Backward<'f, 'a>, foveal::TensorMut<'a>) -> Backward<'f, 'a>;

const GRADIENTS: [(&str, SetGradient); 6] = [
    ("dq", |b, t| b.dq(t)),
    ("dk", |b, t| b.dk(t)),
    ("dv", |b, t| b.dv(t)),
    ("dsinks", |b, t| b.dsinks(t)),
    ("dbias", |b, t| b.dbias(t)),
    ("dalibi_slopes", |b, t| b.dalibi_slopes(t)),
];

/// What is read beside q, k and v.
struct Reads<'o> {
    kept: Vec<Held<'o, ()>>,
    options: Vec<Held<'o, SetOption>>,
}

impl<'o> Op<'o> {
    fn reads(&self) -> Reads<'o> {
        let kept = ["out", "lse", "dout", "dlse"].into_iter().zip(self.kept);
        let held = |(name, tensor): (_, Option<&'o Tensor>)| Some(Held::new(name, tensor?, foveal::DType::U32, ()));
        Reads { kept: kept.filter_map(held).collect(), options: self.call.attention.held() }
    }

    /// Computes by `run`, which brings the workspace.
    fn run<'a>(
        &self,
        inputs: [(Operand<'a>, &Layout); 3],
        reads: &'a Reads<'_>,
        written: Vec<(SetGradient, foveal::TensorMut<'a>)>,
        mut place: Place<'a>,
        run: impl FnOnce(Backward<'_, 'a>, foveal::Stream) -> Result<()>,
    ) -> Result<()> {
        let [q, k, v] = views(inputs, &mut place)?;
        let mut kept = Vec::with_capacity(reads.kept.len());
        for tensor in &reads.kept {
            kept.push(tensor.view(&mut place)?.1);
        }
        let &[out, lse, dout, ref dlse @ ..] = kept.as_slice() else { bail!("out, lse and dout are needed") };
        let forward = Forward::was_run(q, k, v, out, lse);
        let forward = self.call.attention.with_options(forward, &reads.options, &mut place)?;
        let mut backward = Backward::of(&forward, dout);
        if let Some(&dlse) = dlse.first() {
            backward = backward.dlse(dlse);
        }
        for (set, gradient) in written {
            backward = set(backward, gradient);
        }
        run(backward, place.stream())
    }

    /// The gradients that are wanted, each with its number, shape and type.
    fn targets(&self) -> impl Iterator<Item = (usize, &'o [usize], DType)> + '_ {
        self.wanted.iter().enumerate().filter_map(|(n, tensor)| tensor.map(|t| (n, t.dims(), t.dtype())))
    }
}

impl CustomOp3 for Op<'_> {
    fn name(&self) -> &'static str {
        "foveal-attention-backward"
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
        let mut storages = Vec::new();
        for (n, dims, dtype) in self.targets() {
            storages.push((n, dims, new_cpu_storage(GRADIENTS[n].0, dtype, dims.iter().product())?));
        }
        let mut written = Vec::new();
        for (n, dims, storage) in &mut storages {
            let (name, set) = GRADIENTS[*n];
            written.push((set, view_mut(name, storage, 0, dims, &packed(dims))?));
        }
        let reads = self.reads();
        let inputs = [(Operand::Cpu(q), q_l), (Operand::Cpu(k), k_l), (Operand::Cpu(v), v_l)];
        self.run(inputs, &reads, written, Place::Cpu, |mut backward, stream| backward.run(stream).map_err(wrap))?;
        for (n, dims, storage) in storages {
            self.slots[n].put_cpu(storage, dims.into());
        }
        Ok(stand_in())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_l: &Layout,
        k: &candle_core::CudaStorage,
        k_l: &Layout,
        v: &candle_core::CudaStorage,
        v_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use crate::storage::cuda::{new_storage, new_zeros, run_with_workspace, view_mut};
        use candle_core::backend::BackendStorage;
        let device = q.device();
        let stream = device.cuda_stream();
        // Rows behind used lengths are not written.
        let attention = &self.call.attention;
        let is_whole = attention.seqused_q.is_none() && attention.seqused_k.is_none();
        let new = if is_whole { new_storage } else { new_zeros };
        let mut storages = Vec::new();
        for (n, dims, dtype) in self.targets() {
            storages.push((n, dims, new(GRADIENTS[n].0, dtype, dims.iter().product(), device)?));
        }
        let (mut written, mut guards) = (Vec::new(), Vec::new());
        for (n, dims, storage) in &mut storages {
            let (name, set) = GRADIENTS[*n];
            let (view, guard) = view_mut(name, storage, (0, dims, &packed(dims)), &stream)?;
            written.push((set, view));
            guards.push(guard);
        }
        let reads = self.reads();
        let inputs = [(Operand::Cuda(q), q_l), (Operand::Cuda(k), k_l), (Operand::Cuda(v), v_l)];
        self.run(inputs, &reads, written, Place::on(device, &stream)?, |backward, _| {
            run_with_workspace(backward, device)
        })?;
        drop(guards);
        for (n, dims, storage) in storages {
            self.slots[n].put_cuda(storage, dims.into());
        }
        crate::graph::stand_in_cuda(device)
    }
}
