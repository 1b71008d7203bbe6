use candle_core::{bail, CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use crate::graph::{merged_has_no_gradient, Slot, Triple};
use crate::storage::{new_cpu_storage, packed, view_mut, wrap, Held, Place};

/// Partial results over disjoint sets of keys, `(out, lse)` each, put together as attention over all of them.
///
/// outs `[b, s_q, h_q, d_v]` or `[total_q, h_q, d_v]` of one type, lses f32 `[b, h_q, s_q]` or `[h_q, total_q]`: as
/// [`Attention::forward_with_lse`](crate::Attention::forward_with_lse) gives them. 1 to 32 parts; their order settles
/// every bit. The result is of the parts' type.
///
/// Errors: what does not fit, by the argument's name; and merging has no backward: a backward pass that comes here is
/// refused.
pub fn merge(parts: &[(&Tensor, &Tensor)]) -> Result<(Tensor, Tensor)> {
    let Some(&(first, _)) = parts.first() else { bail!("merge: there are no parts") };
    // The graph hangs on a part that tracks gradients, if there is one: a backward pass is refused, never left out.
    let tracked = parts.iter().flat_map(|&(out, lse)| [out, lse]).find(|tensor| tensor.track_op()).unwrap_or(first);
    let lse = Slot::default();
    let op = Op { parts: parts.iter().map(|&(out, lse)| (out.clone(), lse.clone())).collect(), lse: lse.clone() };
    let out = tracked.apply_op3(first, first, op)?;
    Ok((out, lse.into_merged(tracked)?))
}

struct Op {
    parts: Vec<(Tensor, Tensor)>,
    lse: Slot,
}

type Locked<'a> = (Held<'a, ()>, Held<'a, ()>);

impl Op {
    fn held(&self) -> Vec<Locked<'_>> {
        let lock = |name, tensor| Held::new(name, tensor, foveal::DType::U32, ());
        self.parts.iter().map(|(out, lse)| (lock("outs", out), lock("lses", lse))).collect()
    }

    fn dims(&self) -> (Vec<usize>, Vec<usize>) {
        self.parts.first().map_or_else(Default::default, |(out, lse)| (out.dims().to_vec(), lse.dims().to_vec()))
    }

    fn dtype(&self) -> DType {
        self.parts.first().map_or(DType::F32, |(out, _)| out.dtype())
    }

    fn run<'a>(
        &self,
        held: &'a [Locked<'_>],
        out: foveal::TensorMut<'a>,
        lse: foveal::TensorMut<'a>,
        mut place: Place<'a>,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(held.len());
        for (out, lse) in held {
            parts.push(foveal::Part { out: out.view(&mut place)?.1, lse: lse.view(&mut place)?.1 });
        }
        foveal::Merge::new(&parts, out).lse(lse).run(place.stream()).map_err(wrap)
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "foveal-merge"
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
        let (out_dims, lse_dims) = self.dims();
        let mut out = new_cpu_storage("outs", self.dtype(), out_dims.iter().product())?;
        let mut lse = new_cpu_storage("lse", DType::F32, lse_dims.iter().product())?;
        let held = self.held();
        let out_view = view_mut("out", &mut out, 0, &out_dims, &packed(&out_dims))?;
        let lse_view = view_mut("lse", &mut lse, 0, &lse_dims, &packed(&lse_dims))?;
        self.run(&held, out_view, lse_view, Place::Cpu)?;
        self.lse.put_cpu(lse, lse_dims.into());
        Ok((out, out_dims.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        first: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use crate::storage::cuda::{new_storage, with_view_mut};
        use candle_core::backend::BackendStorage;
        let (out_dims, lse_dims) = self.dims();
        let (out_strides, lse_strides) = (packed(&out_dims), packed(&lse_dims));
        let stream = first.device().cuda_stream();
        let mut out = new_storage("outs", self.dtype(), out_dims.iter().product(), first.device())?;
        let mut lse = new_storage("lse", DType::F32, lse_dims.iter().product(), first.device())?;
        let held = self.held();
        with_view_mut("out", &mut out, (0, &out_dims, &out_strides), &stream, |out| {
            with_view_mut("lse", &mut lse, (0, &lse_dims, &lse_strides), &stream, |lse| {
                self.run(&held, out, lse, Place::on(first.device(), &stream)?)
            })
        })?;
        self.lse.put_cuda(lse, lse_dims.into());
        Ok((out, out_dims.into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Triple> {
        merged_has_no_gradient()
    }
}
