//! Rows appended with a rotary embedding, by slots and behind lengths, bit for bit as the formula says; and attention
//! over parts, merged, as attention over all keys.

#[path = "support/run.rs"]
mod run;
mod support;

use foveal::{Append, Merge, Part, RotaryLayout, Stream, Tensor, TensorMut};
use run::{run, Order};
use support::random::Random;
use support::{every, judge, random_data, Format, Problem};

/// One row, turned; each operation rounded for itself.
fn turned(row: &[f32], cos: &[f32], sin: &[f32], layout: RotaryLayout) -> Vec<f32> {
    let mut result = row.to_vec();
    for i in 0..cos.len() {
        let (a, b) = match layout {
            RotaryLayout::HalfSplit => (i, i + cos.len()),
            RotaryLayout::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (row[a], row[b]);
        result[a] = x * cos[i] - y * sin[i];
        result[b] = y * cos[i] + x * sin[i];
    }
    result
}

#[test]
fn rows_go_to_slots_of_both_cache_layouts() {
    let (rows, heads, d, pages, page_size, rot) = (5usize, 2usize, 6usize, 3usize, 4usize, 4usize);
    let mut random = Random::new(1);
    let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
    let (k, cos, sin) = (normal(rows * heads * d), normal(8 * rot / 2), normal(8 * rot / 2));
    let (slots, positions) = ([7i64, 0, -1, 11, 4], [3i32, 0, 1, 7, 2]);
    for layout in [RotaryLayout::HalfSplit, RotaryLayout::Interleaved] {
        for heads_first in [false, true] {
            let (row, head) = if heads_first { (d, page_size * d) } else { (heads * d, d) };
            let mut cache = vec![9f32; pages * page_size * heads * d];
            let mut expected = cache.clone();
            for (n, &slot) in slots.iter().enumerate().filter(|(_, &slot)| slot >= 0) {
                let angles = positions[n] as usize * rot / 2..(positions[n] as usize + 1) * rot / 2;
                for h in 0..heads {
                    let at =
                        slot as usize / page_size * page_size * heads * d + slot as usize % page_size * row + h * head;
                    let new =
                        turned(&k[(n * heads + h) * d..][..d], &cos[angles.clone()], &sin[angles.clone()], layout);
                    expected[at..at + d].copy_from_slice(&new);
                }
            }
            let view =
                TensorMut::strided(&mut cache, &[pages, page_size, heads, d], &[page_size * heads * d, row, head, 1]);
            Append::new()
                .k(Tensor::new(&k, &[rows, heads, d]).unwrap(), view.unwrap())
                .slot_mapping(Tensor::new(&slots, &[rows]).unwrap())
                .rotary(Tensor::new(&cos, &[8, rot / 2]).unwrap(), Tensor::new(&sin, &[8, rot / 2]).unwrap(), layout)
                .positions(Tensor::new(&positions, &[rows]).unwrap())
                .run(Stream::none())
                .unwrap();
            assert_eq!(cache, expected, "{layout:?}, heads first: {heads_first}");
        }
    }
}

#[test]
fn rows_go_behind_lengths_and_q_turns_in_place() {
    let (d, scale) = (2usize, [2f32]);
    let (v, mut q) = ([1f32, 2., 3., 4., 5., 6.], [1f32, 0., 0., 1., 1., 1.]);
    let (cos, sin) = ([1f32, 0., 0., -1.], [0f32, 1., -1., 0.]);
    let (lengths, offsets, table) = ([1i32, 2], [0i32, 1, 3], [1u32, 9, 0, 2]);
    let mut cache = [0f32; 12]; // 3 pages of 2 rows
    Append::new()
        .v(Tensor::new(&v, &[3, 1, d]).unwrap(), TensorMut::new(&mut cache, &[3, 2, 1, d]).unwrap())
        .q_in_place(TensorMut::new(&mut q, &[3, 1, d]).unwrap())
        .cache_lengths(Tensor::new(&lengths, &[2]).unwrap())
        .cu_seqlens(Tensor::new(&offsets, &[3]).unwrap())
        .block_table(Tensor::new(&table, &[2, 2]).unwrap())
        .rotary(Tensor::new(&cos, &[4, 1]).unwrap(), Tensor::new(&sin, &[4, 1]).unwrap(), RotaryLayout::HalfSplit)
        .v_scale(Tensor::new(&scale, &[1]).unwrap())
        .run(Stream::none())
        .unwrap();
    // Sequence 0: row 0 becomes key 1, in page 1. Sequence 1: rows 1 and 2 become keys 2 and 3, in page 2.
    assert_eq!(cache, [0., 0., 0., 0., 0., 0., 0.5, 1., 1.5, 2., 2.5, 3.]);
    assert_eq!(q, [0., 1., 1., 0., -1., -1.]);
}

#[test]
fn parts_of_the_keys_merge_to_the_whole() {
    let (rows, keys, heads, d) = (9usize, 40usize, (4usize, 2usize), 16usize);
    let p = Problem::new(Format::F32, &[(rows, keys)], heads, d);
    let data = random_data(&p, 2);
    let mut parts = Vec::new();
    for part in [0..15usize, 15..16, 16..40] {
        let of = |all: &[f32]| all[part.start * heads.1 * d..part.end * heads.1 * d].to_vec();
        let some = Problem::new(Format::F32, &[(rows, part.len())], heads, d);
        let data = support::Data { q: data.q.clone(), k: of(&data.k), v: of(&data.v) };
        parts.push(run(&some, &data, true, Order::RowsFirst).unwrap());
    }
    let views: Vec<_> = parts
        .iter()
        .map(|(out, lse)| Part {
            out: Tensor::new(out, &[rows, heads.0, d]).unwrap(),
            lse: Tensor::new(lse, &[heads.0, rows]).unwrap(),
        })
        .collect();
    let (mut out, mut lse) = (vec![f32::NAN; rows * heads.0 * d], vec![f32::NAN; rows * heads.0]);
    Merge::new(&views, TensorMut::new(&mut out, &[rows, heads.0, d]).unwrap())
        .lse(TensorMut::new(&mut lse, &[heads.0, rows]).unwrap())
        .run(Stream::none())
        .unwrap();
    judge(&p, &data, &out, &lse, every).unwrap();
}
