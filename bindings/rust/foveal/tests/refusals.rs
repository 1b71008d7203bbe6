//! What is refused, by name, and that nothing is written then.

use foveal::{Append, Backend, DType, Error, Forward, Memory, Merge, Part, Stream, Tensor, TensorMut, MAX_MERGE_PARTS};

const SHAPE: [usize; 4] = [1, 2, 1, 2];

fn call<'a>(data: &'a [f32; 4], out: &'a mut [f32; 4]) -> Forward<'a> {
    let input = Tensor::new(data, &SHAPE).unwrap();
    Forward::new(input, input, input, TensorMut::new(out, &SHAPE).unwrap())
}

fn expect_refusal(result: foveal::Result<()>, words: &[&str]) {
    match result {
        Err(Error::InvalidArgument(text) | Error::Unsupported(text)) => {
            for word in words {
                assert!(text.contains(word), "'{text}' does not name '{word}'");
            }
        }
        other => panic!("{other:?} is no refusal that names {words:?}"),
    }
}

#[test]
fn options_that_make_no_sense_are_named() {
    let data = [1f32, 0., 0., 1.];
    let mut out = [7f32; 4];
    let three = [1f32; 3];
    let ints = [1i32; 4];
    expect_refusal(call(&data, &mut out).scale(f32::NAN).run(Stream::none()), &["scale", "NaN"]);
    expect_refusal(call(&data, &mut out).causal().window(None, Some(5)).run(Stream::none()), &["causal", "right", "5"]);
    expect_refusal(call(&data, &mut out).softcap(-1.0).run(Stream::none()), &["softcap", "-1"]);
    expect_refusal(
        call(&data, &mut out).sinks(Tensor::new(&three, &[3]).unwrap()).run(Stream::none()),
        &["sinks", "3"],
    );
    expect_refusal(
        call(&data, &mut out).mask(Tensor::new(&ints, &[1, 1, 2, 2]).unwrap()).run(Stream::none()),
        &["mask"],
    );
    expect_refusal(
        call(&data, &mut out).cu_seqlens_q(Tensor::new(&ints, &[4]).unwrap()).run(Stream::none()),
        &["cu_seqlens_k"],
    );
    expect_refusal(
        call(&data, &mut out).backend(Backend::Sm90).run(Stream::none()),
        &["q lies in host memory", "Sm90"],
    );
    assert_eq!(out, [7.; 4]);
    call(&data, &mut out).causal().window(Some(usize::MAX), None).run(Stream::none()).unwrap();
    assert_eq!(out[..2], [1., 0.]);
}

#[test]
fn memory_that_is_not_there_is_named() {
    let data = [1f32, 0., 0., 1.];
    let mut out = [7f32; 4];
    let q = Tensor::described(DType::F32, &SHAPE, &[4, 2, 2, 1]).unwrap();
    let input = Tensor::new(&data, &SHAPE).unwrap();
    let mut forward = Forward::new(q, input, input, TensorMut::new(&mut out, &SHAPE).unwrap());
    assert_eq!(forward.supports(), Ok(()));
    expect_refusal(forward.run(Stream::none()), &["q", "described()"]);
    // SAFETY: the pointer is never followed: memory of two kinds is refused.
    let device =
        unsafe { Tensor::from_raw(256 as *const _, Memory::Device, DType::F32, &SHAPE, &[4, 2, 2, 1]) }.unwrap();
    let mut forward = Forward::new(device, input, input, TensorMut::new(&mut out, &SHAPE).unwrap());
    expect_refusal(forward.run(Stream::none()), &["k lies in host memory", "q in device memory"]);
}

#[test]
fn wrong_lengths_and_slots_are_named_before_anything_is_written() {
    let data = [1f32, 0., 0., 1.];
    let mut out = [7f32; 4];
    let (offsets, rows) = ([0i32, 3], [2usize, 1, 2]);
    let input = Tensor::new(&data, &rows).unwrap();
    let offsets = Tensor::new(&offsets, &[2]).unwrap();
    let mut forward =
        Forward::new(input, input, input, TensorMut::new(&mut out, &rows).unwrap()).cu_seqlens(offsets, offsets);
    expect_refusal(forward.run(Stream::none()), &["cu_seqlens_q", "3"]);
    assert_eq!(out, [7.; 4]);

    let slots = [0i64, 2];
    let cache = || [7f32; 4];
    let mut k_cache = cache();
    let mut append = Append::new()
        .k(input, TensorMut::new(&mut k_cache, &[1, 2, 1, 2]).unwrap())
        .slot_mapping(Tensor::new(&slots, &[2]).unwrap());
    expect_refusal(append.run(Stream::none()), &["slot_mapping", "2"]);
    assert_eq!(k_cache, cache());
    expect_refusal(Append::new().run(Stream::none()), &["k", "v", "q"]);
}

#[test]
fn a_merge_has_one_to_many_parts() {
    let (data, lse) = ([1f32, 2.], [0f32]);
    let mut out = [7f32; 2];
    let part = Part { out: Tensor::new(&data, &[1, 1, 2]).unwrap(), lse: Tensor::new(&lse, &[1, 1]).unwrap() };
    let mut run = |parts: &[Part<'_>]| Merge::new(parts, TensorMut::new(&mut out, &[1, 1, 2])?).run(Stream::none());
    expect_refusal(run(&[]), &["parts", "0"]);
    expect_refusal(run(&[part; MAX_MERGE_PARTS + 1]), &["parts", "33"]);
    assert_eq!(run(&[part; MAX_MERGE_PARTS]), Ok(()));
    assert_eq!(out, data);
}

#[test]
fn merging_two_halves_gives_the_whole_in_place_too() {
    let (mut a, b) = ([1f32, 2.], [3f32, 6.]);
    let (mut lse_a, lse_b) = ([0f32], [0f32]);
    let rest = [Part { out: Tensor::new(&b, &[1, 1, 2]).unwrap(), lse: Tensor::new(&lse_b, &[1, 1]).unwrap() }];
    Merge::in_place(TensorMut::new(&mut a, &[1, 1, 2]).unwrap(), TensorMut::new(&mut lse_a, &[1, 1]).unwrap(), &rest)
        .run(Stream::none())
        .unwrap();
    assert_eq!(a, [2., 4.]);
    assert!((lse_a[0] - 2f32.ln()).abs() < 2e-5);
}

#[test]
fn a_plan_of_another_problem_is_refused_and_its_own_runs() {
    let data = [1f32, 0., 0., 1.];
    let (mut out, mut again) = ([7f32; 4], [7f32; 4]);
    let plan = call(&data, &mut out).causal().plan(None).unwrap();
    assert!(!plan.to_string().is_empty());
    assert!(plan.run(&mut call(&data, &mut out), Stream::none()).is_err());
    assert_eq!(out, [7.; 4]);
    plan.run(&mut call(&data, &mut out).causal(), Stream::none()).unwrap();
    call(&data, &mut again).causal().run(Stream::none()).unwrap();
    assert_eq!(out, again);
}

#[test]
fn a_plan_for_hopper_needs_no_gpu() {
    let (shape, strides) = ([1, 4096, 32, 128], [4096 * 32 * 128, 32 * 128, 128, 1]);
    let q = Tensor::described(DType::Bf16, &shape, &strides).unwrap();
    let forward = Forward::new(q, q, q, TensorMut::described(DType::Bf16, &shape, &strides).unwrap())
        .causal()
        .backend(Backend::Sm90);
    let plan = forward.plan(None).unwrap();
    assert!(plan.to_string().contains("sm90"), "{plan}");
    assert_eq!(plan.workspace_bytes(), 0);
    assert!(forward.plan(Some(u32::MAX)).is_err());
}

#[test]
fn the_library_is_of_this_version() {
    assert_eq!(foveal::version(), env!("CARGO_PKG_VERSION"));
    assert!(foveal::backend_built(Backend::Cpu));
    expect_refusal(foveal::set_num_threads(5000), &["5000"]);
    expect_refusal(foveal::set_num_threads(u32::MAX), &["4294967295"]);
}

#[test]
fn calls_and_plans_go_from_thread_to_thread() {
    fn sendable<T: Send + Sync>() {}
    sendable::<Forward<'_>>();
    sendable::<Merge<'_>>();
    sendable::<Append<'_>>();
    sendable::<foveal::Plan>();
    sendable::<Tensor<'_>>();
    sendable::<TensorMut<'_>>();
    sendable::<Error>();
}
