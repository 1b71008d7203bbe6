//! No input makes the crate panic, and nothing outside what a call may write changes.

#[path = "support/run.rs"]
mod run;
mod support;

use foveal::{
    Alignment, Append, Backend, DType, Forward, Merge, Part, Result, RotaryLayout, Stream, Tensor, TensorMut,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use run::{run, Order};
use support::random::Random;
use support::{every, random_data, Errors, Problem, FORMATS};

/// Sizes that are often small, sometimes 0, and sometimes absurd.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..5, 1 => Just(64usize), 1 => Just(usize::MAX), 1 => any::<usize>()]
}

fn dimensions() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    (0usize..6).prop_flat_map(|rank| (prop::collection::vec(size(), rank), prop::collection::vec(size(), rank)))
}

fn shape_of_rank(rank: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..4, rank)
}

const DTYPES: [DType; 7] = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool, DType::I64, DType::U32];

fn packed(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

/// Data of one tensor argument, of any type and shape.
#[derive(Clone, Debug)]
struct Loose {
    floats: Vec<f32>,
    ints: Vec<i32>,
    longs: Vec<i64>,
    bools: Vec<bool>,
    dtype: usize,
    shape: Vec<usize>,
}

impl Loose {
    fn view(&self) -> Result<Tensor<'_>> {
        let strides = packed(&self.shape);
        match self.dtype % 4 {
            0 => Tensor::strided(&self.floats, &self.shape, &strides),
            1 => Tensor::strided(&self.ints, &self.shape, &strides),
            2 => Tensor::strided(&self.longs, &self.shape, &strides),
            _ => Tensor::strided(&self.bools, &self.shape, &strides),
        }
    }
}

fn loose() -> impl Strategy<Value = Loose> {
    let any_float = prop_oneof![6 => -3f32..3.0, 1 => any::<f32>()];
    (
        prop::collection::vec(any_float, 256),
        prop::collection::vec(-2i32..6, 256),
        prop::collection::vec(-2i64..12, 256),
        prop::collection::vec(any::<bool>(), 256),
        0usize..4,
        (1usize..5).prop_flat_map(shape_of_rank),
    )
        .prop_map(|(floats, ints, longs, bools, dtype, shape)| Loose { floats, ints, longs, bools, dtype, shape })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn views_of_anything_are_made_or_refused((shape, strides) in dimensions(), length in 0usize..300) {
        let mut data = vec![0f32; length];
        let _ = Tensor::new(&data, &shape);
        if Tensor::strided(&data, &shape, &strides).is_ok() && !shape.contains(&0) {
            let last: usize = shape.iter().zip(&strides).map(|(n, s)| (n - 1) * s).sum();
            prop_assert!(last < length);
        }
        let _ = TensorMut::strided(&mut data, &shape, &strides).map(|t| (t.shape().len(), t.strides().len()));
    }

    #[test]
    fn questions_about_anything_are_answered(
        shapes in prop::collection::vec(dimensions(), 4),
        dtype in 0usize..7,
        (left, right, chunk) in (prop::option::of(size()), prop::option::of(size()), size()),
        (softcap, scale) in (any::<f32>(), any::<f32>()),
        backend in 0usize..3,
    ) {
        let view = |n: usize| Tensor::described(DTYPES[dtype], &shapes[n].0, &shapes[n].1);
        if let (Ok(q), Ok(k), Ok(v), Ok(out)) =
            (view(0), view(1), view(2), TensorMut::described(DTYPES[dtype], &shapes[3].0, &shapes[3].1))
        {
            let forward = Forward::new(q, k, v, out)
                .window(left, right)
                .chunk(chunk)
                .softcap(softcap)
                .scale(scale)
                .alignment(Alignment::TopLeft)
                .backend([Backend::Auto, Backend::Cpu, Backend::Sm90][backend]);
            let _ = forward.supports();
            if let Ok(plan) = forward.plan(None) {
                prop_assert!(!plan.to_string().is_empty());
            }
        }
    }

    #[test]
    fn calls_with_loose_arguments_end(
        arguments in prop::collection::vec(loose(), 9),
        which in 0usize..512,
        (d, heads, group, rows) in (1usize..5, 1usize..3, 1usize..3, 0usize..4),
        varlen in any::<bool>(),
    ) {
        let data = vec![0.5f32; 512];
        let mut out = vec![9f32; 512];
        let shape = |h: usize| if varlen { vec![rows, h, d] } else { vec![2, rows, h, d] };
        let (shape_q, shape_k) = (shape(heads * group), shape(heads));
        let q = Tensor::strided(&data, &shape_q, &packed(&shape_q)).unwrap();
        let k = Tensor::strided(&data, &shape_k, &packed(&shape_k)).unwrap();
        let size: usize = shape_q.iter().product();
        let out_view = TensorMut::strided(&mut out, &shape_q, &packed(&shape_q)).unwrap();
        let mut forward = Forward::new(q, k, k, out_view);
        type Option<'a> = fn(Forward<'a>, Tensor<'a>) -> Forward<'a>;
        let options: [Option<'_>; 8] = [
            Forward::cu_seqlens_q,
            Forward::cu_seqlens_k,
            Forward::seqused_q,
            Forward::seqused_k,
            Forward::alibi_slopes,
            Forward::sinks,
            Forward::bias,
            Forward::mask,
        ];
        for (n, option) in options.iter().enumerate() {
            if which >> n & 1 == 1 {
                if let Ok(tensor) = arguments[n].view() {
                    forward = option(forward, tensor);
                }
            }
        }
        let ended = forward.run(Stream::none());
        let written = if ended.is_ok() { size } else { 0 };
        prop_assert!(out[written..].iter().all(|&x| x == 9.0), "written outside: {:?}", ended);
    }

    #[test]
    fn appends_with_loose_arguments_end(
        arguments in prop::collection::vec(loose(), 6),
        which in 0usize..64,
        (d, heads, rows, pages, page_size) in (1usize..5, 1usize..3, 0usize..4, 1usize..4, 1usize..4),
        interleaved in any::<bool>(),
    ) {
        let data = vec![0.5f32; 64];
        let mut cache = vec![9f32; 512];
        let (rows_shape, cache_shape) = (vec![rows, heads, d], vec![pages, page_size, heads, d]);
        let size: usize = cache_shape.iter().product();
        let k = Tensor::strided(&data, &rows_shape, &packed(&rows_shape)).unwrap();
        let view = TensorMut::strided(&mut cache, &cache_shape, &packed(&cache_shape)).unwrap();
        let mut append = Append::new().k(k, view);
        type Option<'a> = fn(Append<'a>, Tensor<'a>) -> Append<'a>;
        let options: [Option<'_>; 6] = [
            Append::slot_mapping,
            Append::cache_lengths,
            Append::cu_seqlens,
            Append::block_table,
            Append::positions,
            Append::k_scale,
        ];
        for (n, option) in options.iter().enumerate() {
            if which >> n & 1 == 1 {
                if let Ok(tensor) = arguments[n].view() {
                    append = option(append, tensor);
                }
            }
        }
        let angles = [0.5f32; 16];
        if interleaved {
            let angles = Tensor::new(&angles, &[16, 1]).unwrap();
            append = append.rotary(angles, angles, RotaryLayout::Interleaved);
        }
        let ended = append.run(Stream::none());
        let written = if ended.is_ok() { size } else { 0 };
        prop_assert!(cache[written..].iter().all(|&x| x == 9.0), "written outside: {:?}", ended);
    }

    #[test]
    fn merges_with_loose_arguments_end(
        parts in prop::collection::vec((loose(), loose()), 0..4),
        shape in (1usize..5).prop_flat_map(shape_of_rank),
    ) {
        let mut out = vec![9f32; 512];
        let views: Vec<_> = parts
            .iter()
            .filter_map(|(out, lse)| Some(Part { out: out.view().ok()?, lse: lse.view().ok()? }))
            .collect();
        let view = TensorMut::strided(&mut out, &shape, &packed(&shape)).unwrap();
        let ended = Merge::new(&views, view).run(Stream::none());
        let written = if ended.is_ok() { shape.iter().product() } else { 0 };
        prop_assert!(out[written..].iter().all(|&x| x == 9.0), "written outside: {:?}", ended);
    }
}

#[test]
fn well_formed_problems_of_any_shape_are_right() {
    let mut random = Random::new(7);
    for format in FORMATS {
        let mut errors = Errors::default();
        for seed in 0..100 {
            let mut below = |n: usize| random.below(n);
            let (batch, s_q, s_k, heads_k) = (1 + below(2), below(20), below(40), 1 + below(2));
            let heads = (heads_k * (1 + below(3)), heads_k);
            let mut p = Problem::new(format, &vec![(s_q, s_k); batch], heads, 1 + below(19));
            let mut limit = || (below(2) == 0).then(|| below(30));
            (p.left, p.right) = (limit(), limit());
            (p.d_v, p.top_left) = (1 + below(19), below(2) == 0);
            let data = random_data(&p, seed);
            let order = [Order::RowsFirst, Order::HeadsFirst, Order::Padded][below(3)];
            let (out, lse) = run(&p, &data, false, order).unwrap_or_else(|error| panic!("{error}: {p:?}"));
            errors.collect(&p, &data, &out, &lse, every).unwrap_or_else(|failure| panic!("{failure}: {p:?}"));
        }
        errors.verdict().unwrap_or_else(|failure| panic!("{format:?}: {failure}"));
    }
}
