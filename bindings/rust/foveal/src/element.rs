use foveal_sys as sys;

/// The type of a tensor's elements.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// Sequence offsets and lengths.
    I32,
    /// One byte an element: 0 is false, any other value true.
    Bool,
    /// Slots and positions.
    I64,
    /// Page numbers.
    U32,
    /// OCP FP8 E4M3: the largest number is 448, and nothing is infinite.
    E4m3,
}

impl DType {
    pub(crate) fn raw(self) -> sys::foveal_dtype {
        match self {
            DType::F32 => sys::FOVEAL_F32,
            DType::Bf16 => sys::FOVEAL_BF16,
            DType::F16 => sys::FOVEAL_F16,
            DType::I32 => sys::FOVEAL_I32,
            DType::Bool => sys::FOVEAL_BOOL,
            DType::I64 => sys::FOVEAL_I64,
            DType::U32 => sys::FOVEAL_U32,
            DType::E4m3 => sys::FOVEAL_E4M3,
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What a slice may hold to be viewed as a [`Tensor`](crate::Tensor).
pub trait Element: Copy + sealed::Sealed + 'static {
    /// Its name for the library.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(f32 => F32, Bf16 => Bf16, F16 => F16, i32 => I32, bool => Bool, i64 => I64, u32 => U32, E4m3 => E4m3);

macro_rules! types_of_bits {
    ($($(#[$doc:meta])* $name:ident($bits:ty)),*) => {$(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(
            /// The bits.
            pub $bits,
        );

        impl $name {
            /// The same memory, seen as elements of this type: for bits that come from another crate's type.
            pub fn slice(bits: &[$bits]) -> &[Self] {
                // SAFETY: repr(transparent): the layout is that of the bits, and every value is valid.
                unsafe { std::slice::from_raw_parts(bits.as_ptr().cast(), bits.len()) }
            }

            /// The same memory, seen as elements of this type.
            pub fn slice_mut(bits: &mut [$bits]) -> &mut [Self] {
                // SAFETY: as in slice().
                unsafe { std::slice::from_raw_parts_mut(bits.as_mut_ptr().cast(), bits.len()) }
            }
        }
    )*};
}
types_of_bits!(
    /// The bits of a bfloat16. The crate computes nothing with them: conversions are `half`'s business.
    Bf16(u16),
    /// The bits of an IEEE 754 binary16. The crate computes nothing with them: conversions are `half`'s business.
    F16(u16),
    /// The bits of an OCP FP8 E4M3 number. Rows are converted to it by [`Append`](crate::Append).
    E4m3(u8)
);
