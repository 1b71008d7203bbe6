//! The tests that candle-flash-attn has of its functions, by their names and with the numbers that they expect.

mod literals;
mod problem;
mod support;

use candle_core::{DType, Result, Tensor};
use candle_foveal::candle_flash_attn;
use problem::{counted, device, expect_literals, expect_refusal, expect_right, expect_textbook, tensors};
use support::{random_data, Format, Problem};

#[test]
fn flash_attn_acausal() -> Result<()> {
    let [q, k, v] = counted(&[1, 3, 2, 8], [30., 40., 50.])?;
    let [tq, tk, tv] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    let out = candle_flash_attn::flash_attn(&tq, &tk, &tv, 0.5, false)?.transpose(1, 2)?;
    expect_literals(&out.squeeze(0)?, &[3, 2, 8], &literals::THREE_SHORT_HEADS)?;
    expect_textbook(&out, &q, &k, &v, 0.5)
}

#[test]
fn flash_attn_acausal_softcap() -> Result<()> {
    let [q, k, v] = counted(&[1, 3, 5, 8], [30., 40., 50.])?;
    let [tq, tk, tv] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
    let out = candle_flash_attn::flash_attn_alibi_windowed_softcap(&tq, &tk, &tv, None, 1., None, None, 5.)?;
    let [q, k, v] = [q.to_dtype(DType::F32)?, k.to_dtype(DType::F32)?, v.to_dtype(DType::F32)?];
    let scores = ((q.matmul(&k.t()?.contiguous()?)? / 5.)?.tanh()? * 5.)?;
    let expected = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
    let difference = (expected - out.transpose(1, 2)?.to_dtype(DType::F32)?)?.abs()?.max_all()?;
    assert!(difference.to_scalar::<f32>()? < 1e-3, "{difference}");
    Ok(())
}

#[test]
fn flash_attn_varlen() -> Result<()> {
    let [q, k, v] = counted(&[3, 2, 8], [30., 40., 50.])?;
    let seqlens = Tensor::new(&[0u32, 2], &device()?)?;
    let [q, k, v] = [q.transpose(0, 1)?, k.transpose(0, 1)?, v.transpose(0, 1)?];
    let out = candle_flash_attn::flash_attn_varlen(&q, &k, &v, &seqlens, &seqlens, 32, 32, 0.5, false)?;
    expect_literals(&out.transpose(0, 1)?, &[3, 2, 8], &literals::THREE_SHORT_HEADS)
}

/// k and v [296, 2, d] in a pool of pages of 32 rows, those of the sequence `place(n)`; unused rows are NaN.
fn paged(head_dim: usize, pages: usize, place: impl Fn(usize) -> usize) -> Result<()> {
    const ROWS: usize = 296;
    const PAGE: usize = 32;
    let mut p = Problem::new(Format::Bf16, &[(ROWS, ROWS)], (8, 2), head_dim);
    (p.scale, p.left, p.right, p.logits) = (Some(0.1), Some(1024), Some(0), 2.);
    let data = random_data(&p, 1);
    let [q, k, v] = tensors(&p, &data, true)?;
    let count = ROWS.div_ceil(PAGE);
    let pool = |values: &[f32]| -> Result<Tensor> {
        let page = PAGE * 2 * head_dim;
        let mut pool = vec![f32::NAN; pages * page];
        for (n, rows) in values.chunks(page).enumerate() {
            pool[place(n) * page..][..rows.len()].copy_from_slice(rows);
        }
        Tensor::from_vec(pool, (pages, PAGE, 2, head_dim), &device()?)?.to_dtype(DType::BF16)
    };
    let (k_pages, v_pages) = (pool(&data.k)?, pool(&data.v)?);
    let seqlens = Tensor::new(&[0u32, ROWS as u32], &device()?)?;
    let table: Vec<u32> = (0..count).map(|n| place(n) as u32).collect();
    let table = Tensor::from_vec(table, (1, count), &device()?)?;
    let call = |ranges: Option<&Tensor>, page_block_size| {
        candle_flash_attn::flash_attn_varlen_paged_windowed(
            &q,
            &k_pages,
            &v_pages,
            &seqlens,
            &seqlens,
            &table,
            ranges,
            ROWS,
            ROWS,
            0.1,
            Some(1024),
            Some(0),
            page_block_size,
            None,
        )
    };
    let out = call(None, PAGE)?;
    expect_right(&p, &data, &out, None)?;
    let unpaged = candle_flash_attn::flash_attn_varlen_windowed(
        &q,
        &k,
        &v,
        &seqlens,
        &seqlens,
        ROWS,
        ROWS,
        0.1,
        Some(1024),
        Some(0),
    )?;
    let bits = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    assert!(bits(&out)? == bits(&unpaged)?, "paged and unpaged differ");
    expect_refusal(call(Some(&table), PAGE), &["mm_prefix_ranges"]);
    expect_refusal(call(None, 16), &["page_block_size", "16"]);
    Ok(())
}

/// The crate's test of this name has ranges of keys that are seen both ways, which are refused by name here.
#[test]
fn flash_attn_varlen_paged_mm_prefix_windowed() -> Result<()> {
    paged(256, 10, |n| n)
}

#[test]
fn flash_attn_varlen_paged_shuffled_block_table_hd256() -> Result<()> {
    paged(256, 17, |n| (n * 5 + 3) % 17)
}

#[test]
fn flash_attn_varlen_paged_shuffled_block_table_hd512() -> Result<()> {
    paged(512, 17, |n| (n * 5 + 3) % 17)
}
