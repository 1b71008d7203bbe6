//! Dropout: forward and backward drop the same weights, those of `foveal_dropout_mask()`.

mod support;

use foveal::{Backend, Backward, DType, Error, Forward, Stream, Tensor, TensorMut};
use foveal_sys as sys;
use support::random::Random;

const ROWS: usize = 40;
const KEYS: usize = 50;
const HEADS: usize = 3;
const P: f32 = 0.3;
const STATE: [u64; 2] = [u64::MAX, 1 << 40];

/// `[h_q, s_q, s_k]`
fn mask() -> Vec<u8> {
    let mut mask = vec![7; HEADS * ROWS * KEYS];
    let (h, s_q, s_k) = (HEADS as i64, ROWS as i64, KEYS as i64);
    // SAFETY: the state has two numbers, and the mask as many bytes as it says.
    let status = unsafe { sys::foveal_dropout_mask(1, h, s_q, s_k, P, STATE.as_ptr(), mask.as_mut_ptr()) };
    assert_eq!(status, sys::FOVEAL_OK);
    mask
}

/// `[rows, heads, channels]`, 1 where the row's number is the channel's.
fn identity(rows: usize, channels: usize) -> Vec<f32> {
    let mut values = vec![0.; rows * HEADS * channels];
    for row in 0..rows.min(channels) {
        (0..HEADS).for_each(|head| values[(row * HEADS + head) * channels + row] = 1.);
    }
    values
}

#[test]
fn forward_and_backward_drop_the_same_weights() {
    let mut random = Random::new(5);
    let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
    let (q, k) = (normal(ROWS * HEADS * 8), normal(KEYS * HEADS * 8));
    let (v, dout) = (identity(KEYS, KEYS), identity(ROWS, KEYS));
    let (mut out, mut lse, mut dv) =
        (vec![f32::NAN; ROWS * HEADS * KEYS], vec![0f32; HEADS * ROWS], vec![f32::NAN; v.len()]);
    let shape = [1, ROWS, HEADS, KEYS];
    {
        let mut forward = Forward::new(
            Tensor::new(&q, &[1, ROWS, HEADS, 8]).unwrap(),
            Tensor::new(&k, &[1, KEYS, HEADS, 8]).unwrap(),
            Tensor::new(&v, &[1, KEYS, HEADS, KEYS]).unwrap(),
            TensorMut::new(&mut out, &shape).unwrap(),
        )
        .lse(TensorMut::new(&mut lse, &[1, HEADS, ROWS]).unwrap())
        .dropout(P, STATE);
        forward.run(Stream::none()).unwrap();
        Backward::of(&forward, Tensor::new(&dout, &shape).unwrap())
            .dv(TensorMut::new(&mut dv, &[1, KEYS, HEADS, KEYS]).unwrap())
            .run(Stream::none())
            .unwrap();
    }
    let mask = mask();
    for head in 0..HEADS {
        for row in 0..ROWS {
            for key in 0..KEYS {
                let kept = mask[(head * ROWS + row) * KEYS + key] == 1;
                assert_eq!(out[(row * HEADS + head) * KEYS + key] != 0., kept, "out {head} {row} {key}");
                assert_eq!(dv[(key * HEADS + head) * KEYS + row] != 0., kept, "dv {head} {row} {key}");
            }
        }
    }
}

fn result(p: f32, state: [u64; 2]) -> foveal::Result<[f32; 4]> {
    let data = [1f32, 2., 3., 4.];
    let mut out = [0f32; 4];
    let input = Tensor::new(&data, &[1, 2, 1, 2])?;
    Forward::new(input, input, input, TensorMut::new(&mut out, &[1, 2, 1, 2])?).dropout(p, state).run(Stream::none())?;
    Ok(out)
}

#[test]
fn no_probability_is_no_dropout_and_a_wrong_one_is_named() {
    assert_eq!(result(0., [1, 2]), result(2f32.powi(-18), [1, 2]));
    for p in [1., -0.1, f32::NAN] {
        match result(p, [1, 2]) {
            Err(Error::InvalidArgument(text)) => assert!(text.starts_with("dropout_p is"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_state_may_be_a_tensor() -> foveal::Result<()> {
    let data = [1f32, 2., 3., 4.];
    let by_tensor = |state: Tensor<'_>, again: bool| -> foveal::Result<[f32; 4]> {
        let mut out = [0f32; 4];
        let input = Tensor::new(&data, &[1, 2, 1, 2])?;
        let forward = Forward::new(input, input, input, TensorMut::new(&mut out, &[1, 2, 1, 2])?);
        let mut forward = forward.dropout_state(0.5, state);
        if again {
            forward = forward.dropout(0.5, [9, 9]);
        }
        forward.run(Stream::none())?;
        Ok(out)
    };
    let states = (0..16).map(|seed| [seed, 5]);
    for state in states.clone() {
        let numbers = state.map(|number: u64| number as i64);
        assert_eq!(by_tensor(Tensor::new(&numbers, &[2])?, false)?, result(0.5, state)?);
        assert_eq!(by_tensor(Tensor::new(&numbers, &[2])?, true)?, result(0.5, [9, 9])?);
    }
    assert!(states.map(|state| result(0.5, state)).any(|out| out != result(0.5, [0, 5])), "all drop the same");
    for wrong in [Tensor::new(&[0i32, 1], &[2])?, Tensor::new(&[0i64, 1, 2], &[3])?, Tensor::new(&[0i64, 1], &[1, 2])?]
    {
        match by_tensor(wrong, false) {
            Err(Error::InvalidArgument(text)) => assert!(text.contains("i64 [2] is needed"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_gpu_is_not_given_a_state_in_host_memory() -> foveal::Result<()> {
    let (shape, strides) = ([1, 8, 2, 64], [1024, 128, 64, 1]);
    let input = Tensor::described(DType::Bf16, &shape, &strides)?;
    let out = TensorMut::described(DType::Bf16, &shape, &strides)?;
    let forward = Forward::new(input, input, input, out).backend(Backend::Sm90).dropout(P, STATE);
    match forward.supports() {
        Err(Error::Unsupported(text)) => assert!(text.contains("dropout_state lies in host memory"), "{text}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
