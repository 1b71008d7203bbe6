//! The forward pass, of which the graph knows nothing.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use foveal::Forward;

use crate::attention::{Attention, SetOption};
use crate::graph::{stand_in, Slot};
use crate::storage::{dtype_of, new_cpu_storage, packed, view, view_mut, wrap, Held, Operand, Place};

/// The result.
pub(crate) fn compute(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    q.apply_op3_no_bwd(k, v, &Op { attention, out: None, lse: None })
}

/// The result and the log-sum-exp.
pub(crate) fn compute_with_lse(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
    let slot = Slot::default();
    let out = q.apply_op3_no_bwd(k, v, &Op { attention, out: None, lse: Some(&slot) })?;
    Ok((out, slot.into_tensor(q)?))
}

/// Both into slots.
pub(crate) fn compute_into(attention: &Attention, [q, k, v]: [&Tensor; 3], out: &Slot, lse: &Slot) -> Result<()> {
    q.apply_op3_no_bwd(k, v, &Op { attention, out: Some(out), lse: Some(lse) }).map(drop)
}

/// What a plan of the call says; nothing is computed, and no memory allocated.
pub(crate) fn workspace_bytes(attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<usize> {
    let inputs = [("q", q), ("k", k), ("v", v)].map(|(name, tensor)| Held::new(name, tensor, foveal::DType::U32, ()));
    let options = attention.held();
    #[cfg(feature = "cuda")]
    let stream;
    let (mut place, device) = match q.device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => {
            stream = device.cuda_stream();
            (Place::on(device, &stream)?, Some(crate::storage::cuda::ordinal(&stream)?))
        }
        _ => (Place::Cpu, None),
    };
    let [q_view, k_view, v_view] = &inputs;
    let (q_view, k_view, v_view) = (q_view.view(&mut place)?.1, k_view.view(&mut place)?.1, v_view.view(&mut place)?.1);
    let (dims, _) = result_shapes(q.dims(), v.dims());
    let (name, dtype) = attention.dtype_of_result(q.dtype());
    let dtype = dtype_of(name, dtype, foveal::DType::U32)?;
    let out = foveal::TensorMut::described(dtype, &dims, &packed(&dims)).map_err(wrap)?;
    let forward = attention.with_options(Forward::new(q_view, k_view, v_view, out), &options, &mut place)?;
    Ok(forward.plan(device).map_err(wrap)?.workspace_bytes())
}

struct Op<'o> {
    attention: &'o Attention,
    out: Option<&'o Slot>, // none: it is what the operation returns
    lse: Option<&'o Slot>, // none: not computed
}

impl Op<'_> {
    fn run<'a>(
        &self,
        inputs: [(Operand<'a>, &Layout); 3],
        out: foveal::TensorMut<'a>,
        lse: Option<foveal::TensorMut<'a>>,
        (held, workspace): &'a (Vec<Held<'_, SetOption>>, Option<Held<'_, ()>>),
        mut place: Place<'a>,
    ) -> Result<()> {
        let [q, k, v] = views(inputs, &mut place)?;
        let mut forward = Forward::new(q, k, v, out);
        if let Some(lse) = lse {
            forward = forward.lse(lse);
        }
        let mut forward = self.attention.with_options(forward, held, &mut place)?;
        if let Some(memory) = workspace {
            if let Some(workspace) = memory.as_workspace(&mut place)? {
                forward = forward.workspace(workspace);
            }
        }
        forward.run(place.stream()).map_err(wrap)
    }
}

/// Views of q, k and v.
pub(crate) fn views<'a>(
    [q, k, v]: [(Operand<'a>, &Layout); 3],
    place: &mut Place<'a>,
) -> Result<[foveal::Tensor<'a>; 3]> {
    let mut input = |name, (operand, layout)| view(name, operand, layout, foveal::DType::U32, place);
    Ok([input("q", q)?, input("k", k)?, input("v", v)?])
}

/// Shapes of out and lse. Wrong ranks are given shapes as well: the library refuses them by name.
fn result_shapes(q: &[usize], v: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut out = q.to_vec();
    if let (Some(last), Some(&channels)) = (out.last_mut(), v.last()) {
        *last = channels;
    }
    let lse = match *q {
        [b, s, h, _] => vec![b, h, s],
        [total, h, _] => vec![h, total],
        _ => q.to_vec(),
    };
    (out, lse)
}

impl CustomOp3 for Op<'_> {
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
        let (out_dims, lse_dims) = result_shapes(q_l.dims(), v_l.dims());
        let (name, dtype) = self.attention.dtype_of_result(q.dtype());
        let mut out = new_cpu_storage(name, dtype, out_dims.iter().product())?;
        let lse_elements = if self.lse.is_some() { lse_dims.iter().product() } else { 0 };
        let mut lse = CpuStorage::F32(vec![f32::NEG_INFINITY; lse_elements]);
        let held = (self.attention.held(), self.attention.held_workspace());
        let out_view = view_mut("out", &mut out, 0, &out_dims, &packed(&out_dims))?;
        let lse_view = match self.lse {
            Some(_) => Some(view_mut("lse", &mut lse, 0, &lse_dims, &packed(&lse_dims))?),
            None => None,
        };
        let inputs = [(Operand::Cpu(q), q_l), (Operand::Cpu(k), k_l), (Operand::Cpu(v), v_l)];
        self.run(inputs, out_view, lse_view, &held, Place::Cpu)?;
        if let Some(slot) = self.lse {
            slot.put_cpu(lse, lse_dims.into());
        }
        let Some(slot) = self.out else { return Ok((out, out_dims.into())) };
        slot.put_cpu(out, out_dims.into());
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
        use crate::graph::stand_in_cuda;
        use crate::storage::cuda::{new_storage, new_zeros, with_view_mut};
        use candle_core::{backend::BackendStorage, DType};
        let (out_dims, lse_dims) = result_shapes(q_l.dims(), v_l.dims());
        let (out_strides, lse_strides) = (packed(&out_dims), packed(&lse_dims));
        let stream = q.device().cuda_stream();
        let held = (self.attention.held(), self.attention.held_workspace());
        let run = |out: foveal::TensorMut<'_>, lse: Option<foveal::TensorMut<'_>>| {
            let inputs = [(Operand::Cuda(q), q_l), (Operand::Cuda(k), k_l), (Operand::Cuda(v), v_l)];
            self.run(inputs, out, lse, &held, Place::on(q.device(), &stream)?)
        };
        // Rows behind used lengths are not written.
        let is_whole = self.attention.seqused_q.is_none();
        let new = if is_whole { new_storage } else { new_zeros };
        let (name, dtype) = self.attention.dtype_of_result(q.dtype());
        let mut out = new(name, dtype, out_dims.iter().product(), q.device())?;
        match self.lse {
            None => with_view_mut("out", &mut out, (0, &out_dims, &out_strides), &stream, |out| run(out, None))?,
            Some(slot) => {
                let mut lse = new_storage("lse", DType::F32, lse_dims.iter().product(), q.device())?;
                if !is_whole && !lse_dims.contains(&0) {
                    lse.const_set(f32::NEG_INFINITY.into(), &Layout::contiguous(lse_dims.as_slice()))?;
                }
                with_view_mut("out", &mut out, (0, &out_dims, &out_strides), &stream, |out| {
                    with_view_mut("lse", &mut lse, (0, &lse_dims, &lse_strides), &stream, |lse| run(out, Some(lse)))
                })?;
                slot.put_cuda(lse, lse_dims.into());
            }
        }
        let Some(slot) = self.out else { return Ok((out, out_dims.into())) };
        slot.put_cuda(out, out_dims.into());
        stand_in_cuda(q.device())
    }
}
