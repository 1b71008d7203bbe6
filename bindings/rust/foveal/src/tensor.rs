use std::ffi::c_void;
use std::marker::PhantomData;

use foveal_sys as sys;

use crate::{DType, Element, Error, Result};

/// Where the memory behind a tensor lies, and so who computes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Host memory: the CPU backend.
    Host,
    /// Device memory of a Hopper GPU: the sm90 backend.
    Device,
    /// There is none: the tensor says shape, strides and type alone, for `supports()` and `plan()`.
    None,
}

/// A strided view of memory that is read. `Copy`, as `&[T]` is.
///
/// Strides are in elements and 64-bit; the library wants 1 for the last dimension, and takes 0 for dimensions that are
/// shared (see `foveal.h`). 1 to 4 dimensions.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(crate) raw: sys::foveal_tensor,
    pub(crate) memory: Memory,
    life: PhantomData<&'a ()>,
}

/// A strided view of memory that is written: `&mut` to [`Tensor`]'s `&`.
#[derive(Debug)]
pub struct TensorMut<'a> {
    pub(crate) raw: sys::foveal_tensor,
    pub(crate) memory: Memory,
    life: PhantomData<&'a mut ()>,
}

// SAFETY: the views behave as &[T] and &mut [T] of plain data, which are Send and Sync; device memory is usable from
// every thread of the process, which Tensor::from_raw() asks the caller to vouch for.
unsafe impl Send for Tensor<'_> {}
// SAFETY: as above.
unsafe impl Sync for Tensor<'_> {}
// SAFETY: as above.
unsafe impl Send for TensorMut<'_> {}
// SAFETY: as above; nothing is written through a shared reference.
unsafe impl Sync for TensorMut<'_> {}

impl<'a> Tensor<'a> {
    /// A row-major view of all of `data`.
    ///
    /// Errors: `shape` has no or more than 4 dimensions, or its elements are not as many as those of `data`.
    ///
    /// ```
    /// let q = foveal::Tensor::new(&[0f32; 24], &[1, 2, 3, 4])?; // [b, s_q, h_q, d]
    /// assert_eq!((q.shape(), q.strides()), (&[1i64, 2, 3, 4][..], &[24i64, 12, 4, 1][..]));
    /// # Ok::<(), foveal::Error>(())
    /// ```
    pub fn new<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self> {
        check_count(shape, data.len())?;
        Self::strided(data, shape, &packed(shape))
    }

    /// A strided view of `data`, whose first element is the tensor's first one. Strides are in elements.
    ///
    /// Errors: ranks differ or are not 1 to 4; an element would lie outside `data`.
    ///
    /// ```
    /// let heads_first = [0f32; 24]; // [b, h, s, d] in memory, handed over as [b, s, h, d]
    /// let q = foveal::Tensor::strided(&heads_first, &[1, 2, 3, 4], &[24, 4, 8, 1])?;
    /// # Ok::<(), foveal::Error>(())
    /// ```
    pub fn strided<T: Element>(data: &'a [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        check_bounds(shape, strides, data.len())?;
        let raw = raw_tensor(data.as_ptr().cast_mut().cast(), T::DTYPE, shape, strides)?;
        Ok(Self { raw, memory: Memory::Host, life: PhantomData })
    }

    /// A strided view of bytes as a mask: 0 is false, any other value true.
    ///
    /// Errors: as [`Tensor::strided`].
    pub fn mask(data: &'a [u8], shape: &[usize], strides: &[usize]) -> Result<Self> {
        check_bounds(shape, strides, data.len())?;
        let raw = raw_tensor(data.as_ptr().cast_mut().cast(), DType::Bool, shape, strides)?;
        Ok(Self { raw, memory: Memory::Host, life: PhantomData })
    }

    /// Shape, strides and type without memory, for `supports()` and `plan()`. A call that computes refuses it.
    ///
    /// Errors: ranks differ or are not 1 to 4; a number is beyond 2⁶³.
    pub fn described(dtype: DType, shape: &[usize], strides: &[usize]) -> Result<Self> {
        let raw = raw_tensor(std::ptr::null_mut(), dtype, shape, strides)?;
        Ok(Self { raw, memory: Memory::None, life: PhantomData })
    }

    /// A view of memory that a pointer names: device memory, or host memory of another owner.
    ///
    /// Errors: ranks differ or are not 1 to 4; a number is beyond 2⁶³.
    ///
    /// # Safety
    ///
    /// For `'a`, and on a GPU until the work on the stream of a call that reads it is done:
    /// - `data` points to elements of type `dtype` at every place that shape and strides name, in memory of the named
    ///   kind (for [`Memory::Device`]: of the GPU that the call's stream belongs to), and nothing writes them;
    /// - lengths, offsets, slots, pages and positions in device memory have the values that `foveal.h` demands of them:
    ///   a kernel trusts them. (In host memory the library checks.)
    pub unsafe fn from_raw(
        data: *const c_void,
        memory: Memory,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        let raw = raw_tensor(data.cast_mut(), dtype, shape, strides)?;
        Ok(Self { raw, memory, life: PhantomData })
    }

    /// For a place in a call that is written by other calls; the one that gets it only reads it.
    pub(crate) fn never_written(self) -> TensorMut<'a> {
        TensorMut { raw: self.raw, memory: self.memory, life: PhantomData }
    }

    /// Elements along each dimension.
    pub fn shape(&self) -> &[i64] {
        dimensions(&self.raw.shape, self.raw.rank)
    }

    /// Elements from one index of a dimension to the next.
    pub fn strides(&self) -> &[i64] {
        dimensions(&self.raw.stride, self.raw.rank)
    }
}

impl<'a> TensorMut<'a> {
    /// A row-major view of all of `data`.
    ///
    /// Errors: as [`Tensor::new`].
    pub fn new<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        check_count(shape, data.len())?;
        Self::strided(data, shape, &packed(shape))
    }

    /// A strided view of `data`, whose first element is the tensor's first one. Strides are in elements.
    ///
    /// Errors: as [`Tensor::strided`]; and two indices would name the same element, or may do so: dimensions have to
    /// lie over one another, in any order.
    pub fn strided<T: Element>(data: &'a mut [T], shape: &[usize], strides: &[usize]) -> Result<Self> {
        check_bounds(shape, strides, data.len())?;
        check_apart(shape, strides)?;
        let raw = raw_tensor(data.as_mut_ptr().cast(), T::DTYPE, shape, strides)?;
        Ok(Self { raw, memory: Memory::Host, life: PhantomData })
    }

    /// Shape, strides and type without memory, as [`Tensor::described`].
    ///
    /// Errors: as [`Tensor::described`].
    pub fn described(dtype: DType, shape: &[usize], strides: &[usize]) -> Result<Self> {
        let raw = raw_tensor(std::ptr::null_mut(), dtype, shape, strides)?;
        Ok(Self { raw, memory: Memory::None, life: PhantomData })
    }

    /// A view of memory that a pointer names.
    ///
    /// Errors: as [`Tensor::from_raw`].
    ///
    /// # Safety
    ///
    /// As [`Tensor::from_raw`], and for as long nothing else reads or writes the elements that shape and strides name,
    /// which are no two the same. Elements between them may be others' (interleaved views of one buffer).
    pub unsafe fn from_raw(
        data: *mut c_void,
        memory: Memory,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self> {
        let raw = raw_tensor(data, dtype, shape, strides)?;
        Ok(Self { raw, memory, life: PhantomData })
    }

    /// The same view for a shorter time, after which this one can be used again.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut { raw: self.raw, memory: self.memory, life: PhantomData }
    }

    /// The view as one that is read.
    pub fn as_tensor(&self) -> Tensor<'_> {
        Tensor { raw: self.raw, memory: self.memory, life: PhantomData }
    }

    /// Elements along each dimension.
    pub fn shape(&self) -> &[i64] {
        dimensions(&self.raw.shape, self.raw.rank)
    }

    /// Elements from one index of a dimension to the next.
    pub fn strides(&self) -> &[i64] {
        dimensions(&self.raw.stride, self.raw.rank)
    }
}

fn dimensions(numbers: &[i64; 4], rank: i32) -> &[i64] {
    usize::try_from(rank).ok().and_then(|rank| numbers.get(..rank)).unwrap_or(&[])
}

/// Strides of a row-major tensor. A product beyond usize saturates: bounds are checked afterwards.
fn packed(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    let mut next = 1usize;
    for (stride, &size) in strides.iter_mut().zip(shape).rev() {
        *stride = next;
        next = next.saturating_mul(size.max(1));
    }
    strides
}

fn check_count(shape: &[usize], elements: usize) -> Result<()> {
    let count = if shape.contains(&0) {
        Some(0)
    } else {
        shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
    };
    if count == Some(elements) {
        return Ok(());
    }
    Err(Error::invalid(format!("the shape {shape:?} does not have the {elements} elements of the slice")))
}

/// The index of the last element must be below `elements`.
fn check_bounds(shape: &[usize], strides: &[usize], elements: usize) -> Result<()> {
    if shape.contains(&0) {
        return Ok(());
    }
    let last = shape.iter().zip(strides).try_fold(0usize, |sum, (&size, &stride)| {
        size.saturating_sub(1).checked_mul(stride).and_then(|offset| sum.checked_add(offset))
    });
    match last {
        Some(last) if last < elements => Ok(()),
        _ => Err(Error::invalid(format!(
            "shape {shape:?} and strides {strides:?} reach beyond the {elements} elements of the slice"
        ))),
    }
}

/// Of a tensor that is written: each dimension steps over all that the smaller steps reach.
fn check_apart(shape: &[usize], strides: &[usize]) -> Result<()> {
    if shape.contains(&0) {
        return Ok(());
    }
    let mut steps: Vec<(usize, usize)> =
        strides.iter().copied().zip(shape.iter().copied()).filter(|&(_, size)| size > 1).collect();
    steps.sort_unstable();
    let mut reached = 0usize; // by the dimensions so far
    for (stride, size) in steps {
        if stride <= reached {
            return Err(Error::invalid(format!(
                "a tensor that is written must not overlap itself: shape {shape:?}, strides {strides:?}"
            )));
        }
        reached = reached.saturating_add((size - 1).saturating_mul(stride));
    }
    Ok(())
}

fn raw_tensor(data: *mut c_void, dtype: DType, shape: &[usize], strides: &[usize]) -> Result<sys::foveal_tensor> {
    let mut raw = sys::foveal_tensor { data, dtype: dtype.raw(), rank: 0, shape: [0; 4], stride: [0; 4] };
    if shape.len() != strides.len() {
        return Err(Error::invalid(format!("there are {} dimensions and {} strides", shape.len(), strides.len())));
    }
    if shape.is_empty() || shape.len() > raw.shape.len() {
        return Err(Error::invalid(format!("a tensor has 1 to 4 dimensions, this one {}", shape.len())));
    }
    let number = |what: &str, value: usize| {
        i64::try_from(value).map_err(|_| Error::invalid(format!("the {what} {value} is beyond 2^63 - 1")))
    };
    for (to, &size) in raw.shape.iter_mut().zip(shape) {
        *to = number("size", size)?;
    }
    for (to, &stride) in raw.stride.iter_mut().zip(strides) {
        *to = number("stride", stride)?;
    }
    raw.rank = shape.len() as i32; // at most 4
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_stay_within_their_slice() {
        let data = [0f32; 24];
        assert!(Tensor::new(&data, &[1, 2, 3, 4]).is_ok());
        assert!(Tensor::new(&data, &[1, 2, 3, 3]).is_err());
        assert!(Tensor::new(&data, &[usize::MAX, 2, 3, 4]).is_err());
        assert!(Tensor::strided(&data, &[2, 3, 4], &[12, 4, 1]).is_ok());
        assert!(Tensor::strided(&data, &[2, 3, 4], &[13, 4, 1]).is_err());
        assert!(Tensor::strided(&data, &[3, usize::MAX], &[usize::MAX, 1]).is_err());
        assert!(Tensor::strided(&data, &[0, 3], &[99, 99]).is_ok());
        assert!(Tensor::strided(&data, &[], &[]).is_err());
        assert!(Tensor::strided(&data, &[1; 5], &[1; 5]).is_err());
        assert!(Tensor::strided(&data, &[1, 1], &[1]).is_err());
    }

    #[test]
    fn what_is_written_does_not_overlap_itself() {
        let mut data = [0f32; 24];
        assert!(TensorMut::strided(&mut data, &[2, 3, 4], &[4, 8, 1]).is_ok());
        assert!(TensorMut::strided(&mut data, &[2, 3, 4], &[4, 4, 1]).is_err());
        assert!(TensorMut::strided(&mut data, &[2, 3, 4], &[0, 4, 1]).is_err());
        assert!(TensorMut::strided(&mut data, &[2, 4], &[3, 1]).is_err());
        assert!(TensorMut::strided(&mut data, &[1, 4], &[0, 1]).is_ok());
    }

    #[test]
    fn half_types_are_their_bits() {
        let mut bits = [0x3f80u16, 0x3c00];
        assert_eq!(crate::Bf16::slice(&bits), [crate::Bf16(0x3f80), crate::Bf16(0x3c00)]);
        crate::F16::slice_mut(&mut bits)[0] = crate::F16(1);
        assert_eq!(bits[0], 1);
    }
}
