//! Gradients of every function and option against float64, under the contract's tolerance; what has none, and its name.

mod problem;
mod reference;
mod support;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use candle_foveal::{candle_flash_attn as v2, candle_flash_attn_v3 as v3, Attention};
use problem::{bits, device, formats, is_cpu, seqlens, state, tensors, used, with_dropout, FORMS, STATE};
use reference::{gradients, judge, Kept, Rounding, ROWS_OF_SUMS};
use support::random::Random;
use support::{random_data, Data, Format, Problem};

const SCALE: f32 = 0.17;

/// Variables of a problem. Dense q, k and v are variables `[b, h, s, d]` whose transposed views are the arguments.
struct Variables {
    rows: [Var; 3],
    sinks: Option<Var>,
    bias: Option<Var>,
    slopes: Option<Var>,
    is_varlen: bool,
}

impl Variables {
    fn new(p: &Problem, data: &Data, is_varlen: bool) -> Result<Self> {
        let [q, k, v] = tensors(p, data, is_varlen)?;
        let variable = |t: Tensor| match is_varlen {
            true => Var::from_tensor(&t),
            false => Var::from_tensor(&t.transpose(1, 2)?.contiguous()?),
        };
        let option = |values: &[f32], shape: &[usize]| -> Result<Option<Var>> {
            (!values.is_empty()).then(|| Var::from_tensor(&Tensor::from_slice(values, shape, &device()?)?)).transpose()
        };
        let scores = [p.lengths.len(), p.heads_q, p.lengths[0].0, p.lengths[0].1];
        Ok(Self {
            rows: [variable(q)?, variable(k)?, variable(v)?],
            sinks: option(&p.sinks, &[p.sinks.len()])?,
            bias: option(&p.bias, &scores)?,
            slopes: option(&p.slopes, &[p.slopes.len()])?,
            is_varlen,
        })
    }

    fn arguments(&self) -> Result<[Tensor; 3]> {
        let [q, k, v] = self.rows.each_ref().map(|var| match self.is_varlen {
            true => Ok(var.as_tensor().clone()),
            false => var.transpose(1, 2),
        });
        Ok([q?, k?, v?])
    }

    fn attention(&self, p: &Problem) -> Result<Attention> {
        let mut attention = Attention::new().window(p.left, p.right).chunk(p.chunk).softcap(p.softcap);
        if let Some(scale) = p.scale {
            attention = attention.scale(scale);
        }
        if p.top_left {
            attention = attention.top_left();
        }
        if self.is_varlen {
            let [q, k] = seqlens(p)?;
            attention = attention.seqlens(&q, &k);
        }
        if !p.used.is_empty() {
            let [q, k] = used(p)?;
            attention = attention.seqused_q(&q).seqused_k(&k);
        }
        if p.dropout_p > 0. {
            attention = attention.dropout_state(p.dropout_p, &state()?);
        }
        if let Some(sinks) = &self.sinks {
            attention = attention.sinks(sinks);
        }
        if let Some(bias) = &self.bias {
            attention = attention.bias(bias);
        }
        if let Some(slopes) = &self.slopes {
            attention = attention.alibi_slopes(slopes);
        }
        Ok(attention)
    }

    /// dq, dk, dv [total, h, d].
    fn gradients_of_rows(&self, store: &GradStore) -> Result<Vec<Vec<f32>>> {
        let of = |var: &Var| {
            let gradient = store.get(var).expect("a gradient of q, k and v");
            assert_eq!((gradient.dims(), gradient.dtype()), (var.dims(), var.dtype()));
            let rows = if self.is_varlen { gradient.clone() } else { gradient.transpose(1, 2)? };
            values(&rows)
        };
        self.rows.iter().map(of).collect()
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
}

/// Numbers that the format holds, of this shape.
fn normal(random: &mut Random, format: Format, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|_| format.round_f32(random.normal())).collect();
    Tensor::from_vec(numbers, shape, &device()?)
}

/// [.., h, s] of lse to [h, total].
fn heads_first(lse: &Tensor) -> Result<Vec<f32>> {
    values(&if lse.rank() == 3 { lse.transpose(0, 1)? } else { lse.clone() })
}

/// The sum of `result` times `weights`.
fn loss(result: &Tensor, weights: &Tensor) -> Result<Tensor> {
    (result.to_dtype(DType::F32)? * weights)?.sum_all()
}

fn expect_gradients(p: &Problem, kept: &Kept, data: &Data, vars: &Variables, store: &GradStore) -> Result<()> {
    let to_f32 = |x: f64| f64::from(x as f32);
    let exact = |x: f64| x;
    let to_format = |x: f64| p.format.round(x);
    let oracle = gradients(p, data, kept, &Rounding { each: &exact, stored: &exact });
    let reference = gradients(p, data, kept, &Rounding { each: &to_f32, stored: &to_format });
    let check = |verdict: std::result::Result<(), String>| verdict.unwrap_or_else(|text| panic!("{text}\n{p:?}"));
    let rows_q = data.q.len() / p.d;
    for (n, got) in vars.gradients_of_rows(store)?.iter().enumerate() {
        let rows = rows_q.min(got.len() / [p.d, p.d, p.d_v][n]);
        check(judge(["dq", "dk", "dv"][n], rows, got, &oracle.rows[n], &[&reference.rows[n]], to_format));
    }
    for (n, var) in [&vars.sinks, &vars.bias, &vars.slopes].into_iter().enumerate() {
        let Some(var) = var else { continue };
        let got = values(store.get(var).expect("a gradient of the option"))?;
        let orders = reference.others[n].each_ref().map(Vec::as_slice);
        check(judge(["dsinks", "dbias", "dslopes"][n], ROWS_OF_SUMS, &got, &oracle.others[n][0], &orders, to_f32));
    }
    Ok(())
}

/// The gradients of a loss of the result, of one of the log-sum-exp, and of both.
fn expect_right(p: &Problem, is_varlen: bool, seed: u64) -> Result<()> {
    let data = random_data(p, seed);
    let vars = Variables::new(p, &data, is_varlen)?;
    let [q, k, v] = vars.arguments()?;
    let (out, lse) = vars.attention(p)?.forward_with_lse(&q, &k, &v)?;
    let mut random = Random::new(seed + 1);
    let (dout, dlse) = (normal(&mut random, p.format, out.dims())?, normal(&mut random, Format::F32, lse.dims())?);
    // The loss on a row that sees nothing is infinite; the gradient counts nothing, which backward() has to survive.
    let (of_out, of_lse) = (loss(&out, &dout)?, loss(&lse, &dlse)?);
    let mut kept = Kept { out: values(&out)?, lse: heads_first(&lse)?, dout: values(&dout)?, dlse: vec![] };
    kept.dlse = vec![0.0; kept.lse.len()];
    let store_of_out = of_out.backward()?;
    expect_gradients(p, &kept, &data, &vars, &store_of_out)?;
    kept.dout.fill(0.0);
    kept.dlse = heads_first(&dlse)?;
    let store_of_lse = of_lse.backward()?;
    expect_gradients(p, &kept, &data, &vars, &store_of_lse)?;
    let both = (of_out + of_lse)?.backward()?;
    for var in vars.rows.iter().chain(&vars.sinks).chain(&vars.bias).chain(&vars.slopes) {
        let parts = [&store_of_out, &store_of_lse].map(|store| store.get(var).expect("a gradient").clone());
        assert_eq!(bits(both.get(var).expect("a gradient"))?, bits(&(&parts[0] + &parts[1])?)?);
    }
    Ok(())
}

const WINDOWS: [(Option<usize>, Option<usize>); 4] =
    [(None, None), (None, Some(0)), (Some(7), Some(3)), (Some(20), None)];

#[test]
fn gradients_are_exact_in_every_window() -> Result<()> {
    for &format in formats()? {
        for (is_varlen, lengths) in FORMS {
            for (left, right) in WINDOWS {
                for heads in [(4, 2), (3, 1), (2, 2)] {
                    let mut p = Problem::new(format, &lengths, heads, 32);
                    (p.left, p.right) = (left, right);
                    expect_right(&p, is_varlen, 1)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_every_option_are_exact() -> Result<()> {
    for &format in formats()? {
        for (is_varlen, lengths) in FORMS {
            let mut plain = Problem::new(format, &lengths, (4, 2), 32);
            (plain.scale, plain.right) = (Some(SCALE), Some(0));
            let with = |change: &dyn Fn(&mut Problem)| {
                let mut p = plain.clone();
                change(&mut p);
                expect_right(&p, is_varlen, 2)
            };
            with(&|p| (p.softcap, p.logits) = (3., 5.))?;
            with(&|p| p.slopes = vec![0.5, 0.25, 0.125, 0.0625])?;
            with(&|p| p.sinks = vec![0.5, -1., 2., 0.])?;
            with(&|p| {
                (p.left, p.top_left, p.chunk, p.softcap, p.d_v) = (Some(25), true, 16, 8., 24);
                (p.slopes, p.sinks) = (vec![0.5, 0.25, 0.125, 0.0625], vec![0.5, -1., 2., 0.]);
            })?;
            with(&|p| p.used = vec![(17, 40), (30, 9)])?;
        }
        let mut p = Problem::new(format, &[(30, 50); 2], (4, 2), 32);
        let mut random = Random::new(3);
        p.bias = (0..2 * 4 * 30 * 50).map(|_| random.normal()).collect();
        expect_right(&p, false, 3)?;
        p.sinks = vec![0.5, -1., 2., 0.];
        expect_right(&p, false, 4)?;
    }
    Ok(())
}

#[test]
fn gradients_under_dropout_are_exact() -> Result<()> {
    for &format in formats()? {
        for (is_varlen, lengths) in FORMS {
            let mut p = Problem::new(format, &lengths, (4, 2), 32);
            with_dropout(&mut p, 0.25);
            expect_right(&p, is_varlen, 10)?;
            (p.right, p.softcap, p.sinks, p.slopes) = (Some(0), 8., vec![0.5, -1., 2., 0.], vec![0.5, 0.25, 0.125, 0.]);
            expect_right(&p, is_varlen, 11)?;
        }
    }
    Ok(())
}

/// A state that is a tensor, in both passes.
#[test]
fn a_tensors_state_has_the_gradients_of_its_numbers() -> Result<()> {
    if !is_cpu()? {
        return Ok(()); // numbers are refused there: options.rs
    }
    let p = Problem::new(Format::F32, &[(9, 20)], (4, 2), 16);
    let vars = Variables::new(&p, &random_data(&p, 9), false)?;
    let [q, k, v] = vars.arguments()?;
    let gradients = |attention: Attention| -> Result<Vec<Vec<u32>>> {
        let store = attention.forward(&q, &k, &v)?.sqr()?.sum_all()?.backward()?;
        vars.rows.iter().map(|var| bits(store.get(var).expect("a gradient"))).collect()
    };
    let numbers = gradients(Attention::new().dropout(0.5, STATE))?;
    assert_eq!(gradients(Attention::new().dropout_state(0.5, &state()?))?, numbers);
    assert_ne!(gradients(Attention::new())?, numbers);
    Ok(())
}

type Call<'c> = dyn Fn(&Variables, &Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'c;

/// Each of `calls` gives the gradients that [`Attention`] gives.
fn expect_same(
    p: &Problem,
    is_varlen: bool,
    attention: impl Fn(&Variables) -> Result<Attention>,
    calls: &[&Call<'_>],
) -> Result<()> {
    let data = random_data(p, 5);
    let vars = Variables::new(p, &data, is_varlen)?;
    let [q, k, v] = vars.arguments()?;
    let dout = normal(&mut Random::new(6), p.format, attention(&vars)?.forward(&q, &k, &v)?.dims())?;
    let expected = loss(&attention(&vars)?.forward(&q, &k, &v)?, &dout)?.backward()?;
    for call in calls {
        let store = loss(&call(&vars, &q, &k, &v)?, &dout)?.backward()?;
        for var in vars.rows.iter().chain(&vars.slopes) {
            assert_eq!(bits(store.get(var).expect("a gradient"))?, bits(expected.get(var).expect("a gradient"))?);
        }
    }
    Ok(())
}

#[test]
fn all_dense_functions_have_the_gradients_of_attention() -> Result<()> {
    let mut p = Problem::new(Format::Bf16, &[(30, 50); 2], (4, 2), 32);
    (p.scale, p.right) = (Some(SCALE), Some(0));
    let attention = |vars: &Variables| vars.attention(&p);
    expect_same(
        &p,
        false,
        attention,
        &[
            &|_, q, k, v| v2::flash_attn(q, k, v, SCALE, true),
            &|_, q, k, v| v2::flash_attn_windowed(q, k, v, SCALE, None, Some(0)),
            &|_, q, k, v| v2::flash_attn_alibi_windowed_softcap(q, k, v, None, SCALE, None, Some(0), 0.),
            &|_, q, k, v| v3::flash_attn(q, k, v, SCALE, true, true),
            &|_, q, k, v| v3::flash_attn_windowed(q, k, v, SCALE, None, Some(0), false),
        ],
    )?;
    p.slopes = vec![0.5, 0.25, 0.125, 0.0625];
    fn slopes(vars: &Variables) -> &Tensor {
        vars.slopes.as_ref().expect("slopes")
    }
    expect_same(
        &p,
        false,
        |vars| vars.attention(&p),
        &[
            &|vars, q, k, v| v2::flash_attn_alibi(q, k, v, slopes(vars), SCALE, true),
            &|vars, q, k, v| v2::flash_attn_alibi_windowed(q, k, v, slopes(vars), SCALE, None, Some(0)),
            &|vars, q, k, v| v3::flash_attn_alibi(q, k, v, slopes(vars), SCALE, true, true),
            &|vars, q, k, v| v3::flash_attn_alibi_windowed(q, k, v, slopes(vars), SCALE, None, Some(0), true),
        ],
    )
}

#[test]
fn all_varlen_functions_have_the_gradients_of_attention() -> Result<()> {
    let mut p = Problem::new(Format::F16, &[(30, 50), (41, 9)], (4, 2), 32);
    (p.scale, p.right) = (Some(SCALE), Some(0));
    let [a, b] = &seqlens(&p)?;
    expect_same(
        &p,
        true,
        |vars| vars.attention(&p),
        &[
            &|_, q, k, v| v2::flash_attn_varlen(q, k, v, a, b, 41, 50, SCALE, true),
            &|_, q, k, v| v2::flash_attn_varlen_windowed(q, k, v, a, b, 41, 50, SCALE, None, Some(0)),
            &|_, q, k, v| v3::flash_attn_varlen(q, k, v, a, b, 41, 50, SCALE, true, true),
            &|_, q, k, v| v3::flash_attn_varlen_windowed(q, k, v, a, b, 41, 50, SCALE, None, Some(0), true),
        ],
    )?;
    p.slopes = vec![0.5, 0.25, 0.125, 0.0625];
    let s = |vars: &Variables| vars.slopes.as_ref().expect("slopes").as_tensor().clone();
    expect_same(
        &p,
        true,
        |vars| vars.attention(&p),
        &[
            &|vars, q, k, v| v2::flash_attn_varlen_alibi(q, k, v, &s(vars), a, b, 41, 50, SCALE, true),
            &|vars, q, k, v| {
                v2::flash_attn_varlen_alibi_windowed(q, k, v, &s(vars), a, b, 41, 50, SCALE, None, Some(0))
            },
            &|vars, q, k, v| v3::flash_attn_varlen_alibi(q, k, v, &s(vars), a, b, 41, 50, SCALE, true, true),
            &|vars, q, k, v| {
                v3::flash_attn_varlen_alibi_windowed(q, k, v, &s(vars), a, b, 41, 50, SCALE, None, Some(0), true)
            },
            &|vars, q, k, v| {
                let s = s(vars);
                v2::flash_attn_varlen_alibi_windowed_softcap(q, k, v, Some(&s), a, b, 41, 50, SCALE, None, Some(0), 0.)
            },
        ],
    )
}
