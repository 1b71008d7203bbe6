//! Attention in candle's graph: which arguments get gradients, what is refused, and a model that trains.

mod problem;
mod support;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_foveal::{candle_flash_attn as v2, merge, Attention};
use candle_nn::{linear_no_bias, AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use problem::{bits, device, dtype, expect_refusal, formats};
use support::random::Random;

fn normal(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let mut random = Random::new(seed);
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

/// The same as rows of q, k and v on the device of the tests, in the first type that it computes in.
fn rows(seed: u64, shape: &[usize]) -> Result<Tensor> {
    on_device(seed, shape)?.to_dtype(dtype(formats()?[0]))
}

fn on_device(seed: u64, shape: &[usize]) -> Result<Tensor> {
    normal(seed, shape)?.to_device(&device()?)
}

#[test]
fn one_tensor_as_q_k_and_v_gets_the_sum() -> Result<()> {
    let x = rows(1, &[1, 9, 2, 16])?;
    let one = Var::from_tensor(&x)?;
    let store = Attention::new().causal().forward(&one, &one, &one)?.sqr()?.sum_all()?.backward()?;
    let three = [Var::from_tensor(&x)?, Var::from_tensor(&x)?, Var::from_tensor(&x)?];
    let apart = Attention::new().causal().forward(&three[0], &three[1], &three[2])?.sqr()?.sum_all()?.backward()?;
    let [dq, dk, dv] = three.each_ref().map(|var| apart.get(var).expect("a gradient"));
    assert_eq!(bits(store.get(&one).expect("a gradient"))?, bits(&((dq + dk)? + dv)?)?);
    Ok(())
}

#[test]
fn only_variables_get_gradients_and_each_is_the_same_alone() -> Result<()> {
    let inputs = [rows(2, &[1, 9, 4, 16])?, rows(3, &[1, 12, 2, 16])?, rows(4, &[1, 12, 2, 16])?];
    let options = [on_device(5, &[4])?, on_device(6, &[1, 1, 9, 12])?, on_device(7, &[4])?.abs()?];
    let all: Vec<Tensor> = inputs.into_iter().chain(options).collect();
    let gradients = |tracked: &[usize]| -> Result<Vec<Option<Vec<u32>>>> {
        let vars: Vec<Var> = all.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        // A step between the variable and the argument: candle panics where such a one is left without gradient.
        let argument = |n: usize| if tracked.contains(&n) { vars[n].as_tensor() * 2. } else { &all[n] * 2. };
        let (out, lse) = Attention::new()
            .sinks(&argument(3)?)
            .bias(&argument(4)?)
            .alibi_slopes(&argument(5)?)
            .forward_with_lse(&argument(0)?, &argument(1)?, &argument(2)?)?;
        let store = (out.sqr()?.sum_all()?.to_dtype(DType::F32)? + lse.sqr()?.sum_all()?)?.backward()?;
        vars.iter().map(|var| store.get(var).map(bits).transpose()).collect()
    };
    let together = gradients(&[0, 1, 2, 3, 4, 5])?;
    assert!(together.iter().all(Option::is_some));
    for set in [&[0][..], &[1], &[2], &[3], &[4], &[5], &[0, 2], &[1, 5], &[3, 4, 5], &[0, 1, 2]] {
        for (n, gradient) in gradients(set)?.into_iter().enumerate() {
            match set.contains(&n) {
                true => assert_eq!(gradient, together[n], "argument {n} of {set:?}"),
                false => assert_eq!(gradient, None, "argument {n} of {set:?}"),
            }
        }
    }
    Ok(())
}

#[test]
fn a_graph_takes_any_number_of_passes_from_any_thread() -> Result<()> {
    let (q, sinks) = (Var::from_tensor(&normal(8, &[1, 9, 4, 16])?)?, Var::from_tensor(&normal(9, &[4])?)?);
    let out = Attention::new().sinks(&sinks).forward(&q, &q, &q)?.sqr()?.sum_all()?;
    let pass = || -> Result<[Vec<u32>; 2]> {
        let store = out.backward()?;
        Ok([bits(store.get(&q).expect("dq"))?, bits(store.get(&sinks).expect("dsinks"))?])
    };
    let first = pass()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..20).all(|_| pass().unwrap() == first))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    });
    Ok(())
}

#[test]
fn expanded_keys_get_the_sum_and_unused_rows_zeros() -> Result<()> {
    let (q, kv) = (rows(10, &[2, 5, 4, 16])?, Var::from_tensor(&rows(11, &[1, 9, 2, 16])?)?);
    let expanded = kv.broadcast_as((2, 9, 2, 16))?;
    let used = Tensor::new(&[9u32, 4], &device()?)?;
    let loss = |k: &Tensor, v: &Tensor| Attention::new().seqused_k(&used).forward(&q, k, v)?.sqr()?.sum_all();
    let store = loss(&expanded, &expanded)?.backward()?;
    let whole = Var::from_tensor(&expanded.contiguous()?)?;
    let apart = loss(&whole, &whole)?.backward()?;
    let gradient = apart.get(&whole).expect("a gradient");
    assert!(bits(&gradient.get(1)?.narrow(0, 4, 5)?)?.iter().all(|&x| x == 0));
    assert_eq!(bits(store.get(&kv).expect("a gradient"))?, bits(&gradient.sum_keepdim(0)?)?);
    Ok(())
}

#[test]
fn what_has_no_gradient_is_refused_by_name() -> Result<()> {
    let q = Var::zeros((1, 4, 4, 64), dtype(formats()?[0]), &device()?)?;
    let (out, lse) = Attention::new().forward_with_lse(&q, &q, &q)?;
    let (out_alone, lse_alone) = (out.detach(), lse.detach());
    let merged = merge(&[(&out_alone, &lse_alone), (&out, &lse)])?;
    expect_refusal(merged.0.sum_all()?.backward(), &["merge", "outs", "gradient"]);
    expect_refusal(merged.1.sum_all()?.backward(), &["merge", "lses", "gradient"]);
    let (rows, lengths) = (q.squeeze(0)?, Tensor::new(&[0u32, 4], &device()?)?);
    let table = Tensor::zeros((1, 1), DType::U32, &device()?)?;
    let paged = v2::flash_attn_varlen_paged_windowed(
        &rows, &q, &q, &lengths, &lengths, &table, None, 4, 4, 1., None, None, 4, None,
    )?;
    expect_refusal(paged.sum_all()?.backward(), &["block_table", "no gradient"]);
    Ok(())
}

/// x + attention of x, then one number for each position.
struct Model {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

const HEADS: (usize, usize) = (4, 2);
const D: usize = 16;

type Attend = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

fn by_foveal(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    v2::flash_attn(q, k, v, 0.25, true)
}

/// By candle's operations; the scale on the scores, or on q.
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, early: f64, late: f64) -> Result<Tensor> {
    let groups = HEADS.0 / HEADS.1;
    let heads = |t: &Tensor| -> Result<Tensor> {
        let (b, s, h, d) = t.dims4()?;
        let shared = t.unsqueeze(3)?.broadcast_as((b, s, h, groups, d))?.reshape((b, s, h * groups, d))?;
        shared.transpose(1, 2)?.contiguous()
    };
    let (k, v, s) = (heads(k)?, heads(v)?, q.dim(1)?);
    let scores = ((q.transpose(1, 2)?.contiguous()? * early)?.matmul(&k.t()?.contiguous()?)? * late)?;
    let hidden: Vec<f32> = (0..s * s).map(|n| if n % s > n / s { f32::NEG_INFINITY } else { 0. }).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(hidden, (s, s), &Device::Cpu)?)?;
    candle_nn::ops::softmax(&scores, candle_core::D::Minus1)?.matmul(&v)?.transpose(1, 2)
}

fn losses(attend: Attend) -> Result<Vec<f32>> {
    const WIDTH: usize = HEADS.0 * D;
    let map = VarMap::new();
    let builder = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let model = Model {
        q: linear_no_bias(WIDTH, HEADS.0 * D, builder.pp("q"))?,
        k: linear_no_bias(WIDTH, HEADS.1 * D, builder.pp("k"))?,
        v: linear_no_bias(WIDTH, HEADS.1 * D, builder.pp("v"))?,
        out: linear_no_bias(WIDTH, 1, builder.pp("out"))?,
    };
    let mut vars: Vec<_> = map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    for (seed, (_, var)) in vars.iter().enumerate() {
        var.set(&(normal(20 + seed as u64, var.dims())? * 0.2)?)?;
    }
    let mut optimizer =
        AdamW::new(vars.into_iter().map(|v| v.1).collect(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let (x, target) = (normal(12, &[2, 24, WIDTH])?, normal(13, &[2, 24, 1])?);
    (0..50)
        .map(|_| {
            let split = |y: Tensor, heads: usize| y.reshape((2, 24, heads, D));
            let q = split(model.q.forward(&x)?, HEADS.0)?;
            let (k, v) = (split(model.k.forward(&x)?, HEADS.1)?, split(model.v.forward(&x)?, HEADS.1)?);
            let y = (&x + attend(&q, &k, &v)?.reshape((2, 24, WIDTH))?)?;
            let loss = (model.out.forward(&y)? - &target)?.sqr()?.mean_all()?;
            optimizer.backward_step(&loss)?;
            loss.to_scalar::<f32>()
        })
        .collect()
}

#[test]
fn a_model_trains_as_with_candles_own_attention_and_repeatably() -> Result<()> {
    let ours = losses(by_foveal)?;
    let bits = |losses: &[f32]| losses.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&ours), bits(&losses(by_foveal)?), "two runs differ");
    // The noise: candle's own attention with the scale, an odd number so that it rounds, at two places.
    let scaled_late = losses(|q, k, v| by_candle(q, k, v, 1., 0.25))?;
    let scaled_early = losses(|q, k, v| by_candle(q, k, v, 0.3, 0.25 / 0.3))?;
    let most = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    let (noise, difference) = (most(&scaled_late, &scaled_early), most(&ours, &scaled_late));
    println!("losses {} to {}; noise {noise:e}, difference {difference:e}", ours[0], ours[49]);
    assert!(ours[49] < 0.5 * ours[0], "it does not learn: {} to {}", ours[0], ours[49]);
    assert!(difference <= 8. * noise, "losses differ by {difference:e}, candle's from candle's by {noise:e}");
    Ok(())
}
