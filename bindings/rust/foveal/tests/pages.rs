//! Pages copied and gathered: the elements that must be there, and no others; and what is refused.

use foveal::{CopyPages, Gather, Stream, Tensor, TensorMut};

#[test]
fn pages_are_copied_in_both_layouts() {
    let (pages, page_size, heads, d) = (5usize, 2usize, 2usize, 3usize);
    let page = page_size * heads * d;
    let before: Vec<f32> = (0..pages * page).map(|i| i as f32).collect();
    let pairs = [4i64, 0, -1, 1, 3, 2];
    for heads_first in [false, true] {
        let (row, head) = if heads_first { (d, page_size * d) } else { (heads * d, d) };
        let (mut k, mut v) = (before.clone(), before.clone());
        let view = |cache| TensorMut::strided(cache, &[pages, page_size, heads, d], &[page, row, head, 1]).unwrap();
        CopyPages::new(Tensor::new(&pairs, &[3, 2]).unwrap())
            .k_cache(view(&mut k))
            .v_cache(view(&mut v))
            .run(Stream::none())
            .unwrap();
        let mut expected = before.clone();
        expected.copy_within(4 * page..5 * page, 0);
        expected.copy_within(3 * page..4 * page, 2 * page);
        assert_eq!(k, expected, "heads first: {heads_first}");
        assert_eq!(v, expected, "heads first: {heads_first}");
    }
}

#[test]
fn sequences_are_gathered_by_table_and_by_list() {
    let cache: Vec<f32> = (0..12).map(|i| i as f32).collect(); // 6 pages of 2 rows
    let (ends, used, table) = ([0i32, 3, 3, 5], [2i32, 0, 2], [5u32, 1, 99, 99, 2, 99]);
    let (indptr, indices) = ([0i32, 2, 2, 3], [5u32, 1, 2]);
    for listed in [false, true] {
        for shortened in [false, true] {
            let mut v = [-1f32; 5];
            let mut gather = Gather::new(Tensor::new(&ends, &[4]).unwrap())
                .v(Tensor::new(&cache, &[6, 2, 1, 1]).unwrap(), TensorMut::new(&mut v, &[5, 1, 1]).unwrap());
            gather = if listed {
                gather.page_list(Tensor::new(&indptr, &[4]).unwrap(), Tensor::new(&indices, &[3]).unwrap())
            } else {
                gather.block_table(Tensor::new(&table, &[3, 2]).unwrap())
            };
            if shortened {
                gather = gather.seqused_k(Tensor::new(&used, &[3]).unwrap());
            }
            gather.run(Stream::none()).unwrap();
            assert_eq!(v, [10., 11., if shortened { -1. } else { 2. }, 4., 5.], "list: {listed}");
        }
    }
}

#[test]
fn refusals_name_the_argument() {
    let mut cache = [0f32; 4];
    let view = |cache| TensorMut::new(cache, &[4, 1, 1, 1]).unwrap();
    let twice = [0i32, 1, 2, 1];
    let error = CopyPages::new(Tensor::new(&twice, &[2, 2]).unwrap())
        .k_cache(view(&mut cache))
        .run(Stream::none())
        .unwrap_err();
    assert!(error.to_string().contains("pairs[0, 1] is 1"), "{error}");
    let error = CopyPages::new(Tensor::new(&twice, &[2, 2]).unwrap()).run(Stream::none()).unwrap_err();
    assert!(error.to_string().contains("k_cache and v_cache are absent"), "{error}");
    let mut k = [0f32; 1];
    let error = Gather::new(Tensor::new(&[0i32, 1], &[2]).unwrap())
        .k(Tensor::new(&cache, &[4, 1, 1, 1]).unwrap(), TensorMut::new(&mut k, &[1, 1, 1]).unwrap())
        .block_table(Tensor::new(&[4i32], &[1, 1]).unwrap())
        .run(Stream::none())
        .unwrap_err();
    assert!(error.to_string().contains("block_table[0, 0] is 4"), "{error}");
}
