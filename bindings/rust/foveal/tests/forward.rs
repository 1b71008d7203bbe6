//! The forward on the CPU: each option, all together, lengths, layouts, against float64 under the contract's tolerance.

#[path = "support/run.rs"]
mod run;
mod support;

use run::{run, Order};
use std::ffi::c_void;
use support::random::Random;
use support::{every, judge, random_data, Errors, Format, Problem, FORMATS};

fn expect_right(p: &Problem, varlen: bool, order: Order, seed: u64) {
    let data = random_data(p, seed);
    let (out, lse) = run(p, &data, varlen, order).unwrap_or_else(|error| panic!("{error}: {p:?}"));
    judge(p, &data, &out, &lse, every).unwrap_or_else(|failure| panic!("{failure}\n{p:?} {order:?}"));
}

fn dense(format: Format) -> Problem {
    let mut p = Problem::new(format, &[(37, 53), (37, 53)], (4, 2), 40);
    p.d_v = 24;
    p
}

/// Every option alone, then all together.
fn options(p: &Problem, random: &mut Random) -> Vec<(&'static str, Problem)> {
    type Change = fn(&mut Problem, &mut Random);
    let changes: [(&'static str, Change); 13] = [
        ("plain", |_, _| {}),
        ("scale", |p, _| p.scale = Some(0.3)),
        ("causal", |p, _| p.right = Some(0)),
        ("window", |p, _| (p.left, p.right) = (Some(9), Some(4))),
        ("left", |p, _| p.left = Some(7)),
        ("top-left", |p, _| (p.top_left, p.right) = (true, Some(0))),
        ("chunk", |p, _| p.chunk = 16),
        ("softcap", |p, _| (p.softcap, p.logits) = (5.0, 5.0)),
        ("slopes", |p, _| p.slopes = (0..p.heads_q).map(|h| 0.5f32.powi(h as i32 + 1)).collect()),
        ("sinks", |p, r| p.sinks = (0..p.heads_q).map(|_| r.normal()).collect()),
        ("peaky", |p, _| p.logits = 30.0),
        ("bias", |p, r| {
            let count = p.lengths.len() * p.heads_q * p.lengths[0].0 * p.lengths[0].1;
            p.bias = (0..count).map(|_| if r.below(9) == 0 { f32::NEG_INFINITY } else { r.normal() }).collect();
        }),
        ("mask", |p, r| {
            let count = p.lengths.len() * p.heads_q * p.lengths[0].0 * p.lengths[0].1;
            p.mask = (0..count).map(|_| r.below(4) > 0).collect();
        }),
    ];
    let mut all = p.clone();
    let mut problems = Vec::new();
    for (name, change) in changes {
        let mut one = p.clone();
        change(&mut one, random);
        problems.push((name, one));
        if name != "left" && name != "peaky" {
            change(&mut all, random);
        }
    }
    problems.push(("all", all));
    problems
}

#[test]
fn every_option_is_exact() {
    let mut random = Random::new(1);
    for format in FORMATS {
        for (n, (_, p)) in options(&dense(format), &mut random).into_iter().enumerate() {
            expect_right(&p, false, [Order::RowsFirst, Order::HeadsFirst, Order::Padded][n % 3], n as u64);
        }
    }
}

#[test]
fn every_option_of_varlen_is_exact() {
    let mut random = Random::new(2);
    for format in FORMATS {
        let p = Problem::new(format, &[(5, 70), (0, 3), (64, 64), (9, 0), (33, 2)], (6, 2), 32);
        for (n, (name, p)) in options(&p, &mut random).into_iter().enumerate() {
            if !["bias", "mask", "all"].contains(&name) {
                expect_right(&p, true, Order::RowsFirst, n as u64);
            }
        }
    }
}

#[test]
fn used_lengths_shorten_sequences() {
    let mut p = dense(Format::Bf16);
    p.used = vec![(20, 50), (37, 0)];
    p.right = Some(0);
    let data = random_data(&p, 3);
    let (out, lse) = run(&p, &data, false, Order::HeadsFirst).unwrap();
    judge(&p, &data, &out, &lse, every).unwrap();
    let behind = &out[20 * p.heads_q * p.d_v..37 * p.heads_q * p.d_v];
    assert!(behind.iter().all(|x| x.is_nan()), "rows behind a used length are not written");
}

#[test]
fn a_ragged_causal_batch_of_a_server_is_right() {
    // candle's issue 3603: two sequences of 1743 and 1559 tokens, which its FlashAttention-3 crate never ends.
    let mut p = Problem::new(Format::Bf16, &[(1743, 1743), (1559, 1559)], (32, 8), 128);
    p.right = Some(0);
    let data = random_data(&p, 4);
    let (out, lse) = run(&p, &data, true, Order::RowsFirst).unwrap();
    judge(&p, &data, &out, &lse, |_, head, row| head % 11 == 3 && (row % 61 == 0 || row % 1743 > 1738)).unwrap();
}

#[test]
fn two_hundred_random_ragged_batches_are_right() {
    let mut random = Random::new(5);
    let mut errors = FORMATS.map(|_| Errors::default());
    for n in 0..200 {
        let lengths: Vec<_> = (0..1 + random.below(5)).map(|_| (random.below(40), random.below(40))).collect();
        let heads_k = 1 + random.below(2);
        let heads = (heads_k * (1 + random.below(4)), heads_k);
        let mut p = Problem::new(FORMATS[n % 3], &lengths, heads, [16, 24, 32][random.below(3)]);
        p.right = Some(0);
        let data = random_data(&p, n as u64);
        let (out, lse) = run(&p, &data, true, Order::RowsFirst).unwrap();
        errors[n % 3].collect(&p, &data, &out, &lse, every).unwrap_or_else(|failure| panic!("{failure}: {p:?}"));
    }
    errors.iter().for_each(|errors| errors.verdict().unwrap());
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let p = Problem::new(Format::F16, &[(300, 700)], (8, 2), 64);
    let data = random_data(&p, 6);
    foveal::set_num_threads(1).unwrap();
    assert_eq!(foveal::num_threads(), Ok(1));
    let one = run(&p, &data, false, Order::RowsFirst).unwrap();
    foveal::set_num_threads(3).unwrap();
    let three = run(&p, &data, false, Order::RowsFirst).unwrap();
    // SAFETY: `once` needs nothing, and calls without it do not care.
    unsafe { foveal::set_thread_runner(Some(once), std::ptr::null_mut()) };
    let by_runner = run(&p, &data, false, Order::RowsFirst).unwrap();
    // SAFETY: as before.
    unsafe { foveal::set_thread_runner(None, std::ptr::null_mut()) };
    foveal::set_num_threads(0).unwrap();
    assert!(one == three && one == by_runner);
}

unsafe extern "C" fn once(
    work: Option<unsafe extern "C" fn(*mut c_void)>,
    job: *mut c_void,
    _threads: i32,
    _context: *mut c_void,
) {
    if let Some(work) = work {
        // SAFETY: the runner's job.
        unsafe { work(job) };
    }
}
