//! Views of candle's storages, without copies.

use candle_core::{bail, CpuStorage, DType, Error, Layout, Result, Storage, Tensor};
use float8::F8E4M3;
use half::slice::HalfFloatSliceExt;

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{
    cudarc::driver::{CudaStream, DevicePtr, SyncOnDrop},
    CudaDevice, CudaStorage,
};

/// An argument's memory.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Cpu(&'a CpuStorage),
    #[cfg(feature = "cuda")]
    Cuda(&'a CudaStorage),
}

/// Where a call runs, and what has to live until it has been issued.
pub(crate) enum Place<'a> {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda {
        device: &'a CudaDevice,
        stream: &'a CudaStream,
        reads: Vec<SyncOnDrop<'a>>,
    },
    #[cfg(not(feature = "cuda"))]
    #[allow(dead_code)] // the lifetime's only use without `cuda`
    Never(&'a std::convert::Infallible),
}

impl<'a> Place<'a> {
    /// A device and its stream, as the calling thread's current ones: candle's default stream has one name on all devices.
    #[cfg(feature = "cuda")]
    pub(crate) fn on(device: &'a CudaDevice, stream: &'a CudaStream) -> Result<Self> {
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        Ok(Place::Cuda { device, stream, reads: Vec::new() })
    }

    pub(crate) fn stream(&self) -> foveal::Stream {
        match self {
            Place::Cpu => foveal::Stream::none(),
            #[cfg(feature = "cuda")]
            // SAFETY: the stream lives as long as this place, which calls do not outlive.
            Place::Cuda { stream, .. } => unsafe { foveal::Stream::from_raw(stream.cu_stream().cast()) },
            #[cfg(not(feature = "cuda"))]
            Place::Never(never) => match **never {},
        }
    }
}

/// An error of foveal's as one of candle's; `Error::wrap` keeps it whole.
pub(crate) fn wrap(error: foveal::Error) -> Error {
    Error::wrap(error)
}

/// What the library calls candle's type. Its unsigned integers are what the argument takes: candle's flash-attention
/// crates have lengths as u32, the library as i32, with the same bits.
pub(crate) fn dtype_of(name: &str, dtype: DType, unsigned: foveal::DType) -> Result<foveal::DType> {
    Ok(match dtype {
        DType::F32 => foveal::DType::F32,
        DType::BF16 => foveal::DType::Bf16,
        DType::F16 => foveal::DType::F16,
        DType::F8E4M3 => foveal::DType::E4m3,
        DType::I32 => foveal::DType::I32,
        DType::I64 => foveal::DType::I64,
        DType::U32 => unsigned,
        DType::U8 => foveal::DType::Bool,
        other => bail!("{name} has the type {other:?}, which foveal does not compute with"),
    })
}

/// `u32` as `i32`: numbers from 2³¹ on become negative ones, which the library refuses.
fn signed(values: &[u32]) -> &[i32] {
    // SAFETY: both types have the same size and alignment, and every value is valid.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

fn codes(values: &[F8E4M3]) -> &[foveal::E4m3] {
    // SAFETY: both types are repr(transparent) of u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

fn codes_mut(values: &mut [F8E4M3]) -> &mut [foveal::E4m3] {
    // SAFETY: as in codes().
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

fn from<'a, T>(values: &'a [T], layout: &Layout) -> &'a [T] {
    values.get(layout.start_offset()..).unwrap_or(&[])
}

/// A view of an argument.
pub(crate) fn view<'a>(
    name: &str,
    operand: Operand<'a>,
    layout: &Layout,
    unsigned: foveal::DType,
    place: &mut Place<'a>,
) -> Result<foveal::Tensor<'a>> {
    let (dims, strides) = (layout.dims(), layout.stride());
    match (operand, place) {
        (Operand::Cpu(storage), Place::Cpu) => match storage {
            CpuStorage::F32(data) => foveal::Tensor::strided(from(data, layout), dims, strides),
            CpuStorage::BF16(data) => {
                foveal::Tensor::strided(foveal::Bf16::slice(from(data, layout).reinterpret_cast()), dims, strides)
            }
            CpuStorage::F16(data) => {
                foveal::Tensor::strided(foveal::F16::slice(from(data, layout).reinterpret_cast()), dims, strides)
            }
            CpuStorage::F8E4M3(data) => foveal::Tensor::strided(codes(from(data, layout)), dims, strides),
            CpuStorage::I32(data) => foveal::Tensor::strided(from(data, layout), dims, strides),
            CpuStorage::I64(data) => foveal::Tensor::strided(from(data, layout), dims, strides),
            CpuStorage::U32(data) if unsigned == foveal::DType::U32 => {
                foveal::Tensor::strided(from(data, layout), dims, strides)
            }
            CpuStorage::U32(data) => foveal::Tensor::strided(signed(from(data, layout)), dims, strides),
            CpuStorage::U8(data) => foveal::Tensor::mask(from(data, layout), dims, strides),
            other => {
                use candle_core::backend::BackendStorage;
                dtype_of(name, other.dtype(), unsigned)?;
                bail!("{name} has a type that foveal does not compute with")
            }
        }
        .map_err(|error| Error::msg(format!("{name}: {error}"))),
        #[cfg(feature = "cuda")]
        (Operand::Cuda(storage), Place::Cuda { device, stream, reads }) => {
            use candle_core::backend::{BackendDevice, BackendStorage};
            let (at, first) = (storage.device().location(), device.location());
            if at != first {
                bail!("{name} is on {at:?}, and the first argument on {first:?}")
            }
            cuda::view(name, storage, layout, unsigned, stream, reads)
        }
        #[allow(unreachable_patterns)] // without `cuda` the first arm is all there is
        _ => bail!("{name} is on another device than the first argument"),
    }
}

/// A tensor argument beside those that candle hands over, locked for reading.
pub(crate) struct Held<'a, Set> {
    name: &'static str,
    storage: Box<dyn std::ops::Deref<Target = Storage> + 'a>,
    layout: &'a Layout,
    unsigned: foveal::DType,
    set: Set,
}

impl<'a, Set: Copy> Held<'a, Set> {
    pub(crate) fn new(name: &'static str, tensor: &'a Tensor, unsigned: foveal::DType, set: Set) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Held { name, storage: Box::new(storage), layout, unsigned, set }
    }

    /// The view, and the option that it is for.
    pub(crate) fn view<'b>(&'b self, place: &mut Place<'b>) -> Result<(Set, foveal::Tensor<'b>)> {
        let operand = match &**self.storage {
            Storage::Cpu(storage) => Operand::Cpu(storage),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => Operand::Cuda(storage),
            _ => bail!("{} is on a device that candle-foveal does not compute with", self.name),
        };
        Ok((self.set, view(self.name, operand, self.layout, self.unsigned, place)?))
    }

    /// The memory as a workspace. None for the CPU, which needs none, nor of no bytes.
    pub(crate) fn as_workspace<'b>(&'b self, place: &mut Place<'b>) -> Result<Option<foveal::Workspace<'b>>> {
        self.view(place)?;
        let layout = self.layout;
        if self.storage.dtype() != DType::U8 || !layout.is_contiguous() {
            let (dtype, dims, strides) = (self.storage.dtype(), layout.dims(), layout.stride());
            bail!("{} is {dtype:?} of shape {dims:?} and strides {strides:?}; contiguous U8 is needed", self.name)
        }
        match (&**self.storage, place) {
            #[cfg(feature = "cuda")]
            (Storage::Cuda(storage), Place::Cuda { stream, reads, .. }) if layout.shape().elem_count() > 0 => {
                cuda::workspace(storage, layout, stream, reads).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Row-major strides, which have no 0 where a size is 0.
pub(crate) fn packed(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i].max(1);
    }
    strides
}

/// A result on the CPU, of zeros.
pub(crate) fn new_cpu_storage(name: &str, dtype: DType, elements: usize) -> Result<CpuStorage> {
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(vec![0.0; elements]),
        DType::BF16 => CpuStorage::BF16(vec![half::bf16::ZERO; elements]),
        DType::F16 => CpuStorage::F16(vec![half::f16::ZERO; elements]),
        other => bail!("{name} has the type {other:?}; foveal computes in f32, bf16 and f16"),
    })
}

/// A view of what is written on the CPU.
pub(crate) fn view_mut<'a>(
    name: &str,
    storage: &'a mut CpuStorage,
    offset: usize,
    dims: &[usize],
    strides: &[usize],
) -> Result<foveal::TensorMut<'a>> {
    fn from<T>(values: &mut [T], offset: usize) -> &mut [T] {
        values.get_mut(offset..).unwrap_or_default()
    }
    match storage {
        CpuStorage::F32(data) => foveal::TensorMut::strided(from(data, offset), dims, strides),
        CpuStorage::BF16(data) => foveal::TensorMut::strided(
            foveal::Bf16::slice_mut(from(data, offset).reinterpret_cast_mut()),
            dims,
            strides,
        ),
        CpuStorage::F16(data) => {
            foveal::TensorMut::strided(foveal::F16::slice_mut(from(data, offset).reinterpret_cast_mut()), dims, strides)
        }
        CpuStorage::F8E4M3(data) => foveal::TensorMut::strided(codes_mut(from(data, offset)), dims, strides),
        other => {
            use candle_core::backend::BackendStorage;
            bail!("{name} has the type {:?}; foveal writes f32, bf16, f16 and e4m3", other.dtype())
        }
    }
    .map_err(|error| Error::msg(format!("{name}: {error}")))
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    //! The same on a GPU.

    use super::*;
    use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtrMut};
    use half::{bf16, f16};
    use std::ffi::c_void;

    fn address<'a, T>(data: &'a CudaSlice<T>, stream: &'a CudaStream, reads: &mut Vec<SyncOnDrop<'a>>) -> (u64, usize) {
        let (pointer, guard) = data.device_ptr(stream);
        reads.push(guard);
        (pointer, size_of::<T>())
    }

    pub(crate) fn view<'a>(
        name: &str,
        storage: &'a CudaStorage,
        layout: &Layout,
        unsigned: foveal::DType,
        stream: &'a CudaStream,
        reads: &mut Vec<SyncOnDrop<'a>>,
    ) -> Result<foveal::Tensor<'a>> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of(name, storage.dtype(), unsigned)?;
        let (pointer, size) = match storage.dtype() {
            DType::F32 => address(storage.as_cuda_slice::<f32>()?, stream, reads),
            DType::BF16 => address(storage.as_cuda_slice::<bf16>()?, stream, reads),
            DType::F16 => address(storage.as_cuda_slice::<f16>()?, stream, reads),
            DType::F8E4M3 => address(storage.as_cuda_slice::<F8E4M3>()?, stream, reads),
            DType::I32 => address(storage.as_cuda_slice::<i32>()?, stream, reads),
            DType::I64 => address(storage.as_cuda_slice::<i64>()?, stream, reads),
            DType::U32 => address(storage.as_cuda_slice::<u32>()?, stream, reads),
            DType::U8 => address(storage.as_cuda_slice::<u8>()?, stream, reads),
            other => bail!("{name} has the type {other:?}, which foveal does not compute with"),
        };
        let pointer = (pointer as usize + layout.start_offset() * size) as *const c_void;
        // SAFETY: candle's layouts lie within their storage, whose guard in `reads` lives until the call has been issued
        // on the stream that candle's own work on the storage is ordered by. Values of lengths are the user's promise.
        unsafe { foveal::Tensor::from_raw(pointer, foveal::Memory::Device, dtype, layout.dims(), layout.stride()) }
            .map_err(|error| Error::msg(format!("{name}: {error}")))
    }

    /// Memory that calls write and nobody reads but they, one after the other: for candle's own work it is read.
    pub(crate) fn workspace<'a>(
        storage: &'a CudaStorage,
        layout: &Layout,
        stream: &'a CudaStream,
        reads: &mut Vec<SyncOnDrop<'a>>,
    ) -> Result<foveal::Workspace<'a>> {
        let (pointer, _) = address(storage.as_cuda_slice::<u8>()?, stream, reads);
        // SAFETY: bytes of the storage, as in view(). That they were zeros once, that calls alone have written them since, and
        // on one stream, is the user's promise.
        Ok(unsafe {
            foveal::Workspace::from_raw(
                (pointer as usize + layout.start_offset()) as *mut c_void,
                layout.shape().elem_count(),
            )
        })
    }

    /// A view of what is written, and what has to live until the call that writes it has been issued.
    pub(crate) fn view_mut<'a>(
        name: &str,
        storage: &'a mut CudaStorage,
        layout: (usize, &[usize], &[usize]), // offset, dims, strides
        stream: &'a CudaStream,
    ) -> Result<(foveal::TensorMut<'a>, SyncOnDrop<'a>)> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of(name, storage.dtype(), foveal::DType::U32)?;
        macro_rules! written {
            ($type:ty) => {{
                let (pointer, guard) = storage.as_cuda_slice_mut::<$type>()?.device_ptr_mut(stream);
                (pointer as usize + layout.0 * size_of::<$type>(), guard)
            }};
        }
        let (pointer, guard) = match storage.dtype() {
            DType::F32 => written!(f32),
            DType::BF16 => written!(bf16),
            DType::F16 => written!(f16),
            DType::F8E4M3 => written!(F8E4M3),
            other => bail!("{name} has the type {other:?}; foveal writes f32, bf16, f16 and e4m3"),
        };
        // SAFETY: as in view(), and the storage is borrowed mutably.
        let view = unsafe {
            foveal::TensorMut::from_raw(pointer as *mut c_void, foveal::Memory::Device, dtype, layout.1, layout.2)
        };
        Ok((view.map_err(|error| Error::msg(format!("{name}: {error}")))?, guard))
    }

    /// Writes to `storage` by `write`, which gets a view of it.
    pub(crate) fn with_view_mut<R>(
        name: &str,
        storage: &mut CudaStorage,
        layout: (usize, &[usize], &[usize]),
        stream: &CudaStream,
        write: impl FnOnce(foveal::TensorMut<'_>) -> Result<R>,
    ) -> Result<R> {
        let (view, guard) = view_mut(name, storage, layout, stream)?;
        let result = write(view);
        drop(guard);
        result
    }

    /// The number of the stream's device.
    pub(crate) fn ordinal(stream: &CudaStream) -> Result<u32> {
        u32::try_from(stream.context().ordinal()).map_err(Error::wrap)
    }

    /// Runs with as much memory for intermediate results as the library asks for.
    pub(crate) fn run_with_workspace(mut backward: foveal::Backward<'_, '_>, device: &CudaDevice) -> Result<()> {
        let stream = device.cuda_stream();
        let bytes = backward.plan(Some(ordinal(&stream)?)).map_err(wrap)?.workspace_bytes();
        // SAFETY: the stream lives until the call has been issued.
        let target = unsafe { foveal::Stream::from_raw(stream.cu_stream().cast()) };
        if bytes == 0 {
            return backward.run(target).map_err(wrap);
        }
        let mut memory = device.alloc_zeros::<u8>(bytes)?;
        let (pointer, guard) = memory.device_ptr_mut(&stream);
        // SAFETY: zeros of this call alone, which are freed in the stream's order, behind it.
        let workspace = unsafe { foveal::Workspace::from_raw(pointer as *mut c_void, bytes) };
        let result = backward.workspace(workspace).run(target).map_err(wrap);
        drop(guard);
        result
    }

    /// Room for a result that is written whole; never for no element, which CUDA need not give or take back.
    pub(crate) fn new_storage(name: &str, dtype: DType, elements: usize, device: &CudaDevice) -> Result<CudaStorage> {
        let elements = elements.max(1);
        // SAFETY: a call that succeeds writes every element; after one that fails the storage is dropped.
        unsafe {
            Ok(match dtype {
                DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(elements)?, device.clone()),
                DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(elements)?, device.clone()),
                DType::F16 => CudaStorage::wrap_cuda_slice(device.alloc::<f16>(elements)?, device.clone()),
                other => bail!("{name} has the type {other:?}; foveal computes in bf16 and f16 on a GPU"),
            })
        }
    }

    /// The same of zeros, for one that is not.
    pub(crate) fn new_zeros(name: &str, dtype: DType, elements: usize, device: &CudaDevice) -> Result<CudaStorage> {
        let elements = elements.max(1);
        Ok(match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(elements)?, device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<bf16>(elements)?, device.clone()),
            DType::F16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f16>(elements)?, device.clone()),
            other => bail!("{name} has the type {other:?}; foveal computes in bf16 and f16 on a GPU"),
        })
    }
}
