//! e4m3: a cache is appended to, and attention over it is, to the bit, that over what it holds.

use foveal::{Append, E4m3, Error, Forward, Stream, Tensor, TensorMut};

const SHAPE: [usize; 4] = [1, 3, 1, 4]; // three keys; as a cache, one page of three rows
const ROWS: [f32; 12] = [1.0, -2.0, 0.3, 1e9, 0.0, -0.07, 4.0, 5.0, -1e9, 6.5, 0.001, -3.0];

/// What the rows become in a cache of this scale.
fn cache(scale: f32) -> Result<Vec<E4m3>, Error> {
    let mut codes = vec![E4m3::default(); 12];
    let (slots, scale) = ([0i64, 1, 2], [scale]);
    Append::new()
        .k(Tensor::new(&ROWS, &[3, 1, 4])?, TensorMut::new(&mut codes, &SHAPE)?)
        .slot_mapping(Tensor::new(&slots, &[3])?)
        .k_scale(Tensor::new(&scale, &[1])?)
        .run(Stream::none())?;
    Ok(codes)
}

fn value(code: E4m3) -> f32 {
    let (exponent, fraction) = (i32::from(code.0 >> 3 & 15), f32::from(code.0 & 7));
    let magnitude = if exponent == 0 { fraction * 2f32.powi(-9) } else { (8.0 + fraction) * 2f32.powi(exponent - 10) };
    if code.0 & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[test]
fn append_saturates() -> Result<(), Error> {
    let codes = cache(0.5)?;
    let expected = [2.0, -4.0, 0.625, 448.0, 0.0, -0.140625, 8.0, 10.0, -448.0, 13.0, 0.001953125, -6.0];
    assert_eq!(codes.into_iter().map(value).collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn attention_is_that_of_dequantised_keys() -> Result<(), Error> {
    let codes = cache(0.5)?;
    let keys: Vec<f32> = codes.iter().map(|&code| value(code) * 0.3).collect();
    let values: Vec<f32> = codes.iter().map(|&code| value(code) * 0.7).collect();
    let (q, k_descale, v_descale) = ([0.1f32, 0.2, -0.3, 0.01], [0.3f32], [0.7f32]);
    let (mut out, mut expected) = ([0f32; 4], [0f32; 4]);
    let shape = [1, 1, 1, 4];
    let (k, v) = (Tensor::new(&codes, &SHAPE)?, Tensor::new(&codes, &SHAPE)?);
    Forward::new(Tensor::new(&q, &shape)?, k, v, TensorMut::new(&mut out, &shape)?)
        .k_descale(Tensor::new(&k_descale, &[1, 1])?)
        .v_descale(Tensor::new(&v_descale, &[1, 1])?)
        .run(Stream::none())?;
    let (k, v) = (Tensor::new(&keys, &SHAPE)?, Tensor::new(&values, &SHAPE)?);
    Forward::new(Tensor::new(&q, &shape)?, k, v, TensorMut::new(&mut expected, &shape)?).run(Stream::none())?;
    assert_eq!(out, expected);
    Ok(())
}

#[test]
fn scales_are_worked_out_row_by_row() -> Result<(), Error> {
    let (mut codes, mut scales) = (vec![E4m3::default(); 12], [0f32; 3]);
    let slots = [0i64, 1, 2];
    Append::new()
        .k(Tensor::new(&ROWS, &[3, 1, 4])?, TensorMut::new(&mut codes, &SHAPE)?)
        .slot_mapping(Tensor::new(&slots, &[3])?)
        .k_scale_out(TensorMut::new(&mut scales, &[1, 3, 1])?)
        .run(Stream::none())?;
    assert_eq!(scales, [1e9 / 448.0, 5.0 / 448.0, 1e9 / 448.0]);
    let keys: Vec<f32> = codes.iter().enumerate().map(|(i, &code)| value(code) * scales[i / 4]).collect();
    let (q, shape) = ([0.1f32, 0.2, -0.3, 0.01], [1, 1, 1, 4]);
    let (mut out, mut expected) = ([0f32; 4], [0f32; 4]);
    let cache = Tensor::new(&codes, &SHAPE)?;
    Forward::new(Tensor::new(&q, &shape)?, cache, cache, TensorMut::new(&mut out, &shape)?)
        .k_descale(Tensor::new(&scales, &[1, 3, 1])?)
        .v_descale(Tensor::new(&scales, &[1, 3, 1])?)
        .run(Stream::none())?;
    let keys = Tensor::new(&keys, &SHAPE)?;
    Forward::new(Tensor::new(&q, &shape)?, keys, keys, TensorMut::new(&mut expected, &shape)?).run(Stream::none())?;
    assert_eq!(out, expected);
    Ok(())
}

#[test]
fn descales_are_refused_by_name() -> Result<(), Error> {
    let (codes, q, descale, mut out) = ([E4m3(0x38); 12], [1f32; 4], [1f32; 2], [0f32; 4]);
    let shape = [1, 1, 1, 4];
    let keys = Tensor::new(&codes, &SHAPE)?;
    let error = Forward::new(Tensor::new(&q, &shape)?, keys, keys, TensorMut::new(&mut out, &shape)?)
        .k_descale(Tensor::new(&descale, &[1, 2])?)
        .run(Stream::none())
        .unwrap_err();
    assert!(error.to_string().contains("k_descale.shape[1]"), "{error}");
    Ok(())
}
