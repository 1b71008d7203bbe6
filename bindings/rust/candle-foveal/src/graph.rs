//! What candle's graph of operations knows of attention. Its operations have at most three arguments and one result;
//! attention has up to six arguments with gradients, and two results.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;

use candle_core::{bail, CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

use crate::attention::Attention;
use crate::forward::compute_into;
use crate::gradients::gradients;

/// A result beside the one that candle's operations return.
#[derive(Clone, Default)]
pub(crate) struct Slot {
    cpu: Arc<Mutex<Option<(CpuStorage, Shape)>>>,
    cuda: Arc<Mutex<Option<(CudaStorage, Shape)>>>,
}

impl Slot {
    pub(crate) fn put_cpu(&self, storage: CpuStorage, shape: Shape) {
        *locked(&self.cpu) = Some((storage, shape));
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn put_cuda(&self, storage: CudaStorage, shape: Shape) {
        *locked(&self.cuda) = Some((storage, shape));
    }

    /// A tensor of what was put here, on the device of `like`, without a place in the graph.
    pub(crate) fn into_tensor(self, like: &Tensor) -> Result<Tensor> {
        like.apply_op3_no_bwd(like, like, &Taken { slot: self, backward: None })
    }

    /// The same behind `argument`; a backward pass that comes to it is refused.
    pub(crate) fn into_merged(self, argument: &Tensor) -> Result<Tensor> {
        argument.apply_op3(argument, argument, Taken { slot: self, backward: None })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn taken<S>(slot: &Mutex<Option<(S, Shape)>>) -> Result<(S, Shape)> {
    match locked(slot).take() {
        Some(result) => Ok(result),
        None => bail!("foveal: a result that was not put there; please report this"),
    }
}

/// One number that nobody reads, for operations whose result is elsewhere.
pub(crate) fn stand_in() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), 1.into())
}

#[cfg(feature = "cuda")]
pub(crate) fn stand_in_cuda(device: &candle_core::CudaDevice) -> Result<(CudaStorage, Shape)> {
    // SAFETY: nobody reads the number.
    let number = unsafe { device.alloc::<f32>(1)? };
    Ok((CudaStorage::wrap_cuda_slice(number, device.clone()), 1.into()))
}

/// Gradients in order of the arguments: q, k, v, sinks, bias, slopes.
pub(crate) type Gradients = [Option<Tensor>; 6];

/// An attention call that a backward pass may come to.
pub(crate) struct Call {
    pub(crate) attention: Attention,
    pub(crate) inputs: [Tensor; 3],
    results: OnceLock<(Tensor, Tensor)>, // out and lse, without their places in the graph
}

impl Call {
    /// The arguments that have a gradient.
    pub(crate) fn arguments(&self) -> [Option<&Tensor>; 6] {
        let [q, k, v] = &self.inputs;
        let Attention { sinks, bias, alibi_slopes, .. } = &self.attention;
        [Some(q), Some(k), Some(v), sinks.as_ref(), bias.as_ref(), alibi_slopes.as_ref()]
    }
}

/// [`Attention::forward`] where a gradient may be asked for.
pub(crate) fn attention_in_graph(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (call, out, lse) = called(attention, q, k, v)?;
    let out = in_graph(&call, out, Of::Out)?;
    let lse = lse.into_tensor(q)?;
    call.results.get_or_init(|| (out.detach(), lse));
    Ok(out)
}

/// [`Attention::forward_with_lse`] where a gradient may be asked for.
pub(crate) fn attention_in_graph_with_lse(
    attention: &Attention,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (call, out, lse) = called(attention, q, k, v)?;
    let (out, lse) = (in_graph(&call, out, Of::Out)?, in_graph(&call, lse, Of::Lse)?);
    call.results.get_or_init(|| (out.detach(), lse.detach()));
    Ok((out, lse))
}

fn called(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Arc<Call>, Slot, Slot)> {
    let (out, lse) = (Slot::default(), Slot::default());
    compute_into(attention, [q, k, v], &out, &lse)?;
    let inputs = [q.clone(), k.clone(), v.clone()];
    Ok((Arc::new(Call { attention: attention.clone(), inputs, results: OnceLock::new() }), out, lse))
}

/// The result in `slot` as a node behind all arguments that have a gradient.
fn in_graph(call: &Arc<Call>, slot: Slot, of: Of) -> Result<Tensor> {
    let [q, k, v] = &call.inputs;
    let [_, _, _, options @ ..] = call.arguments();
    if !options.into_iter().flatten().any(Tensor::track_op) {
        let backward = Backward { call: call.clone(), of, bundles: None };
        return q.apply_op3(k, v, Taken { slot, backward: Some(backward) });
    }
    let [inputs, others] = [Bundle::default(), Bundle::default()];
    let absent = q.detach();
    let [sinks, bias, slopes] = options.map(|option| option.unwrap_or(&absent));
    let a = q.apply_op3(k, v, inputs.clone())?;
    let b = sinks.apply_op3(bias, slopes, others.clone())?;
    let backward = Backward { call: call.clone(), of, bundles: Some([inputs, others]) };
    a.apply_op3(&b, &b, Taken { slot, backward: Some(backward) })
}

/// Which of attention's results a gradient comes in through. Each has its own backward pass: in one for both, the first
/// gradient would have to wait for the second one in a place that outlives a pass, which may have failed in between.
#[derive(Clone, Copy)]
enum Of {
    Out,
    Lse,
}

/// What makes the gradients of a node's three arguments, or leaves them to the two bundles that these are.
struct Backward {
    call: Arc<Call>,
    of: Of,
    bundles: Option<[Bundle; 2]>,
}

/// A node of what was put into a slot.
struct Taken {
    slot: Slot,
    backward: Option<Backward>, // none: it was merged, or is in no graph
}

impl CustomOp3 for Taken {
    fn name(&self) -> &'static str {
        "foveal-attention"
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
        taken(&self.slot.cpu)
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
        taken(&self.slot.cuda)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Triple> {
        let Some(Backward { call, of, bundles }) = &self.backward else { return merged_has_no_gradient() };
        let Some((out, lse)) = call.results.get() else {
            bail!("foveal: a backward pass before the forward; please report this")
        };
        let [dq, dk, dv, others @ ..] = match of {
            Of::Out => gradients(call, out, lse, gradient, None)?,
            Of::Lse => gradients(call, out, lse, &zeros_shaped_as(out)?, Some(gradient))?,
        };
        let Some(bundles) = bundles else { return Ok((dq, dk, dv)) };
        bundles[0].leave([dq, dk, dv]);
        bundles[1].leave(others);
        let stand_in = |node: &Tensor| node.track_op().then(|| node.zeros_like()).transpose();
        Ok((stand_in(a)?, stand_in(b)?, None))
    }
}

pub(crate) fn merged_has_no_gradient() -> Result<Triple> {
    bail!("merge has no backward, and outs or lses require a gradient: detach() them, or merge by candle's operations")
}

pub(crate) type Triple = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// One row of zeros for all rows.
fn zeros_shaped_as(out: &Tensor) -> Result<Tensor> {
    let channels = out.dims().last().copied().unwrap_or(0);
    Tensor::zeros(channels, out.dtype(), out.device())?.broadcast_as(out.shape())
}

/// A node that stands for three tensors. The node behind it leaves their gradients here, in each backward pass before the
/// pass, which is of one thread, comes here: what a pass that failed has left is never taken.
#[derive(Clone, Default)]
struct Bundle(Arc<Mutex<HashMap<ThreadId, [Option<Tensor>; 3]>>>);

impl Bundle {
    fn leave(&self, gradients: [Option<Tensor>; 3]) {
        locked(&self.0).insert(std::thread::current().id(), gradients);
    }
}

impl CustomOp3 for Bundle {
    fn name(&self) -> &'static str {
        "foveal-arguments"
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
        Ok(stand_in())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        first: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        stand_in_cuda(first.device())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Triple> {
        match locked(&self.0).remove(&std::thread::current().id()) {
            Some([a, b, c]) => Ok((a, b, c)),
            None => bail!("foveal: gradients that were not left; please report this"),
        }
    }
}
