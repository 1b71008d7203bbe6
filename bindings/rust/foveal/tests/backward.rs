//! Gradients against differences of the forward pass, and what is refused.

mod support;

use foveal::{Backward, DType, Forward, Stream, Tensor, TensorMut};
use support::random::Random;

const SHAPE_Q: [usize; 4] = [1, 5, 4, 8];
const SHAPE_K: [usize; 4] = [1, 7, 2, 8];

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Vec<f32>,
    dout: Vec<f32>,
    dlse: Vec<f32>,
}

impl Inputs {
    fn new() -> Self {
        let mut random = Random::new(3);
        let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
        Self { q: normal(160), k: normal(112), v: normal(112), sinks: normal(4), dout: normal(160), dlse: normal(20) }
    }

    fn forward<'a>(&'a self, out: &'a mut [f32], lse: &'a mut [f32]) -> Forward<'a> {
        Forward::new(
            Tensor::new(&self.q, &SHAPE_Q).unwrap(),
            Tensor::new(&self.k, &SHAPE_K).unwrap(),
            Tensor::new(&self.v, &SHAPE_K).unwrap(),
            TensorMut::new(out, &SHAPE_Q).unwrap(),
        )
        .lse(TensorMut::new(lse, &[1, 4, 5]).unwrap())
        .sinks(Tensor::new(&self.sinks, &[4]).unwrap())
        .softcap(3.)
        .causal()
    }

    /// Σ dout · out + Σ dlse · lse.
    fn loss(&self) -> f64 {
        let (mut out, mut lse) = ([0f32; 160], [0f32; 20]);
        self.forward(&mut out, &mut lse).run(Stream::none()).unwrap();
        let sum = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
        sum(&self.dout, &out) + sum(&self.dlse, &lse)
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    let mut inputs = Inputs::new();
    let (mut out, mut lse) = ([0f32; 160], [0f32; 20]);
    let (mut dq, mut dk, mut dv, mut dsinks) = ([f32::NAN; 160], [f32::NAN; 112], [f32::NAN; 112], [f32::NAN; 4]);
    {
        let mut forward = inputs.forward(&mut out, &mut lse);
        forward.run(Stream::none()).unwrap();
        let mut backward = Backward::of(&forward, Tensor::new(&inputs.dout, &SHAPE_Q).unwrap())
            .dlse(Tensor::new(&inputs.dlse, &[1, 4, 5]).unwrap())
            .dq(TensorMut::new(&mut dq, &SHAPE_Q).unwrap())
            .dk(TensorMut::new(&mut dk, &SHAPE_K).unwrap())
            .dv(TensorMut::new(&mut dv, &SHAPE_K).unwrap())
            .dsinks(TensorMut::new(&mut dsinks, &[4]).unwrap());
        backward.supports().unwrap();
        let plan = backward.plan(None);
        assert!(plan.is_err() || plan.unwrap().workspace_bytes() == 0);
        backward.run(Stream::none()).unwrap();
    }
    fn tensor(inputs: &mut Inputs, which: usize) -> &mut Vec<f32> {
        match which {
            0 => &mut inputs.q,
            1 => &mut inputs.k,
            2 => &mut inputs.v,
            _ => &mut inputs.sinks,
        }
    }
    for (which, gradient) in [&dq[..], &dk[..], &dv[..], &dsinks[..]].into_iter().enumerate() {
        for (i, &got) in gradient.iter().enumerate() {
            // f32 rounds the loss, of about 10, to 1e-6: wide steps, and a third of their error in h².
            let mut difference = |step: f32| {
                let at = tensor(&mut inputs, which)[i];
                tensor(&mut inputs, which)[i] = at + step;
                let above = inputs.loss();
                tensor(&mut inputs, which)[i] = at - step;
                let below = inputs.loss();
                tensor(&mut inputs, which)[i] = at;
                (above - below) / (2. * f64::from(step))
            };
            let (wide, narrow) = (difference(0.0625), difference(0.03125));
            let tolerance = (wide - narrow).abs() + 1e-3;
            assert!((f64::from(got) - narrow).abs() <= tolerance, "{which}[{i}]: {got}, {narrow}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let inputs = Inputs::new();
    let mut out = [0f32; 160];
    let forward = Forward::new(
        Tensor::new(&inputs.q, &SHAPE_Q).unwrap(),
        Tensor::new(&inputs.k, &SHAPE_K).unwrap(),
        Tensor::new(&inputs.v, &SHAPE_K).unwrap(),
        TensorMut::new(&mut out, &SHAPE_Q).unwrap(),
    );
    let mut dq = [0f32; 160];
    let dout = Tensor::new(&inputs.dout, &SHAPE_Q).unwrap();
    let error =
        Backward::of(&forward, dout).dq(TensorMut::new(&mut dq, &SHAPE_Q).unwrap()).run(Stream::none()).unwrap_err();
    assert!(error.to_string().contains("lse is absent"), "{error}");
    let described = TensorMut::described(DType::F32, &SHAPE_Q, &[160, 32, 8, 1]).unwrap();
    let error = Backward::of(&forward, dout).dq(described).run(Stream::none()).unwrap_err();
    assert!(error.to_string().contains("dq has no memory"), "{error}");
}
