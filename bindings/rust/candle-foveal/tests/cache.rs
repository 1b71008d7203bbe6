//! Rows written to caches of both layouts, and turned on the way, against candle's own operations.

mod problem;
mod support;

use candle_core::{DType, Device, Result, Tensor};
use candle_foveal::{reshape_and_cache, Append, CacheLayout, RotaryLayout};
use problem::{device, expect_refusal};

const PAGES: usize = 3;
const PAGE_SIZE: usize = 4;
const HEADS: usize = 2;
const D: usize = 8;

/// Rows of the cache as [slots, h, d].
fn rows_of(cache: &Tensor, layout: CacheLayout) -> Result<Vec<Vec<Vec<f32>>>> {
    let cache = if layout == CacheLayout::Hnd { cache.transpose(1, 2)? } else { cache.clone() };
    cache.contiguous()?.reshape((PAGES * PAGE_SIZE, HEADS, D))?.to_dtype(DType::F32)?.to_vec3::<f32>()
}

#[test]
fn rows_go_to_their_slots_in_nhd_and_hnd() -> Result<()> {
    for (layout, shape) in
        [(CacheLayout::Nhd, (PAGES, PAGE_SIZE, HEADS, D)), (CacheLayout::Hnd, (PAGES, HEADS, PAGE_SIZE, D))]
    {
        for dtype in [DType::BF16, DType::F16] {
            let new = Tensor::rand(-1f32, 1., (4, HEADS, D), &device()?)?.to_dtype(dtype)?;
            let caches = [Tensor::ones(shape, dtype, &device()?)?, Tensor::ones(shape, dtype, &device()?)?];
            let slots = Tensor::new(&[7i64, 0, -1, 11], &device()?)?;
            let v = (&new * 2.)?;
            reshape_and_cache(&new, &v, &caches[0], &caches[1], &slots, layout)?;
            for (rows, cache) in [(&new, &caches[0]), (&v, &caches[1])] {
                let rows = rows.to_dtype(DType::F32)?.to_vec3::<f32>()?;
                let mut expected = vec![vec![vec![1f32; D]; HEADS]; PAGES * PAGE_SIZE];
                (expected[7], expected[0], expected[11]) = (rows[0].clone(), rows[1].clone(), rows[3].clone());
                assert_eq!(rows_of(cache, layout)?, expected, "{layout:?} {dtype:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn rows_go_behind_lengths_turned_as_candle_turns_them() -> Result<()> {
    let device = device()?;
    let (batch, new) = (2, 2);
    let k = Tensor::rand(-1f32, 1., (batch, new, HEADS, D), &device)?;
    let angles = Tensor::rand(-3f32, 3., (PAGE_SIZE * PAGES, D / 2), &device)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let lengths = Tensor::new(&[3u32, 0], &device)?;
    let table = Tensor::new(&[[2u32, 0], [1, 9]], &device)?;
    for (layout, interleaved) in [(RotaryLayout::HalfSplit, false), (RotaryLayout::Interleaved, true)] {
        let cache = Tensor::zeros((PAGES, PAGE_SIZE, HEADS, D), DType::F32, &device)?;
        let append =
            Append::new(CacheLayout::Nhd).cache_lengths(&lengths).block_table(&table).rotary(&cos, &sin, layout);
        append.write_k(&k, &cache)?;
        let turned = append.turn_q(&k)?;
        let written = rows_of(&cache, CacheLayout::Nhd)?;
        for (sequence, first) in [3usize, 0].into_iter().enumerate() {
            let [cos, sin] = [cos.narrow(0, first, new)?, sin.narrow(0, first, new)?];
            let rows = k.narrow(0, sequence, 1)?.transpose(1, 2)?.contiguous()?;
            let rope = if interleaved { candle_nn::rotary_emb::rope_i } else { candle_nn::rotary_emb::rope };
            let expected = rope(&rows, &cos, &sin)?.transpose(1, 2)?.squeeze(0)?;
            let got = turned.narrow(0, sequence, 1)?.squeeze(0)?;
            let difference = (&got - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-6, "{layout:?}: {difference}"); // candle may contract a product and a sum
            for row in 0..new {
                let key = first + row;
                let page = [[2usize, 0], [1, 9]][sequence][key / PAGE_SIZE];
                assert_eq!(written[page * PAGE_SIZE + key % PAGE_SIZE], got.to_vec3::<f32>()?[row]);
            }
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_written() -> Result<()> {
    let device = device()?;
    let rows = Tensor::ones((2, HEADS, D), DType::F32, &device)?;
    let cache = Tensor::zeros((PAGES, PAGE_SIZE, HEADS, D), DType::F32, &device)?;
    let slots = Tensor::new(&[0i64, 12], &device)?;
    let append = Append::new(CacheLayout::Nhd);
    expect_refusal(append.write_k(&rows, &cache), &["slot_mapping"]);
    expect_refusal(append.turn_q(&rows), &["rotary"]);
    let wrong = Tensor::new(&[0u32, 1], &device)?;
    expect_refusal(append.clone().slot_mapping(&wrong).write_v(&rows, &cache), &["slot_mapping"]);
    if matches!(device, Device::Cpu) {
        expect_refusal(append.slot_mapping(&slots).write_k(&rows, &cache), &["slot_mapping", "12"]);
    }
    assert!(cache.flatten_all()?.to_vec1::<f32>()?.iter().all(|&x| x == 0.));
    Ok(())
}
