//! Memory of the host that tensors are made from without a copy, pinned where a GPU is to copy it by itself, and events
//! that tell when it has.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use half::f16;
use tch::{Device, Kind, Tensor};

use super::{NativeError, checked, tensor};

unsafe extern "C" {
    fn dualpath_pinned(len: i64, kind: i32, out: *mut tensor) -> *mut c_char;
    fn dualpath_event_record(device: i32, event: *mut *mut c_void) -> *mut c_char;
    fn dualpath_event_query(event: *mut c_void, done: *mut bool) -> *mut c_char;
    fn dualpath_event_wait(event: *mut c_void) -> *mut c_char;
    fn dualpath_event_free(event: *mut c_void);
}

/// A number that a [`HostArray`] can hold: all of its bit patterns are values, and zero is all zeros.
pub trait Element: Copy + Send + sealed::Sealed + 'static {
    /// The dtype of a tensor of them.
    const KIND: Kind;
    /// The same as c10 numbers them (c10/core/ScalarType.h).
    const SCALAR_TYPE: i32;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for i64 {}
}

impl Element for f16 {
    const KIND: Kind = Kind::Half;
    const SCALAR_TYPE: i32 = 5;
}

impl Element for i64 {
    const KIND: Kind = Kind::Int64;
    const SCALAR_TYPE: i32 = 4;
}

/// A fixed number of values in memory of the host.
pub struct HostArray<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    /// Of this program: `len` values begin `start` bytes into it, at a line of the cache.
    Own { bytes: Vec<u8>, start: usize, len: usize, settled: bool, values: PhantomData<T> },
    /// Of libtorch: a contiguous tensor of one dimension, which nobody else has.
    Pinned { tensor: Tensor, len: usize },
}

/// Bytes of a line of the cache: what is written past the caches should begin with one.
const LINE: usize = 64;
const PAGE: usize = 4096;
/// Bytes of a huge page.
const HUGE_PAGE: usize = 1 << 21;

impl<T: Element> HostArray<T> {
    /// `len` zeros; `pinned` needs the CUDA side of libtorch.
    ///
    /// # Errors
    /// libtorch has no pinned memory to give.
    pub fn zeros(len: usize, pinned: bool) -> Result<Self, NativeError> {
        // An empty tensor has no memory, and nothing to copy.
        let memory = if pinned && len > 0 {
            let mut made: tensor = std::ptr::null_mut();
            // SAFETY: the pointer is valid for the write of one pointer.
            checked(unsafe { dualpath_pinned(len as i64, T::SCALAR_TYPE, &raw mut made) })?;
            // SAFETY: the call succeeded, so it made a tensor on the heap that nobody else frees.
            Memory::Pinned { tensor: unsafe { Tensor::from_ptr(made) }, len }
        } else {
            // Pages of zeros that nobody has touched take no memory yet; asked for with an alignment they would be touched.
            let wanted = len * size_of::<T>();
            let alignment = alignment(wanted);
            let bytes = vec![0; wanted + alignment];
            let start = bytes.as_ptr().align_offset(alignment);
            Memory::Own { bytes, start, len, settled: alignment < HUGE_PAGE, values: PhantomData }
        };
        Ok(Self { memory })
    }

    /// Exchanges small pages for huge ones, as far as the system has them; what was in them may be lost, the first time.
    ///
    /// Rows of batches are written here and there, so that with small pages each has to be looked up. But a huge page is
    /// cleared as a whole when it is touched: memory that began with them would hold up the first rows. So this is for
    /// memory that comes back from its first use.
    pub fn settle(&mut self) {
        if let Memory::Own { bytes, start, len, settled, .. } = &mut self.memory
            && !std::mem::replace(settled, true)
        {
            let whole = *len * size_of::<T>() / HUGE_PAGE * HUGE_PAGE;
            huge_pages(&mut bytes[*start..*start + whole]);
        }
    }
}

/// What `len` values take in memory of this program, in bytes. Beside huge pages some addresses are set aside that are
/// never touched: they are no memory.
pub(crate) fn footprint<T>(len: usize) -> u64 {
    let wanted = len * size_of::<T>();
    let beside = if wanted >= HUGE_PAGE { 0 } else { alignment(wanted) };
    (wanted + beside) as u64
}

fn alignment(bytes: usize) -> usize {
    [HUGE_PAGE, PAGE].into_iter().find(|&size| bytes >= size).unwrap_or(LINE)
}

/// Makes `bytes`, which begin and end with huge pages, zeros in such pages, if the system has them.
fn huge_pages(bytes: &mut [u8]) {
    // SAFETY: the range is memory of this process, and the advice does not change what it holds.
    if unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_HUGEPAGE) } != 0 {
        return;
    }
    // SAFETY: the range is private memory of this process that is no file's: it reads as zeros after the advice, or holds
    // what it did if that is refused.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len(), libc::MADV_DONTNEED) };
    // Cleared here, and not under those who write rows.
    bytes.iter_mut().step_by(HUGE_PAGE).for_each(|byte| *byte = 0);
}

impl<T: Element> Deref for HostArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            // SAFETY: from `start`, below a line, there is room for `len` values, aligned to more than a value; all bytes are
            // initialised, and every bit pattern is a value. The vector never grows, so they do not move.
            Memory::Own { bytes, start, len, .. } => unsafe {
                std::slice::from_raw_parts(bytes.as_ptr().add(*start).cast(), *len)
            },
            // SAFETY: the tensor has `len` values of this kind in host memory, which lives as long as `self`; every bit
            // pattern is a value. It is written through `&mut self` alone.
            Memory::Pinned { tensor, len } => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), *len) },
        }
    }
}

impl<T: Element> DerefMut for HostArray<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            // SAFETY: as above; the borrow is exclusive.
            Memory::Own { bytes, start, len, .. } => unsafe {
                std::slice::from_raw_parts_mut(bytes.as_mut_ptr().add(*start).cast(), *len)
            },
            // SAFETY: as above; the tensor is not shared, so the borrow is the only one.
            Memory::Pinned { tensor, len } => unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), *len) },
        }
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for HostArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Lends `values` to `body` as a tensor of `shape` on the CPU, without a copy.
///
/// What `body` makes of it must own its memory, and whatever reads the tensor behind the scenes (an asynchronous copy)
/// must be done before `values` are written again or freed: the caller sees to that with an [`Event`].
///
/// # Panics
/// `shape` has another number of elements than `values`.
pub(crate) fn with_tensor<T: Element, R>(values: &[T], shape: &[i64], body: impl FnOnce(&Tensor) -> R) -> R {
    assert_eq!(shape.iter().product::<i64>(), values.len() as i64, "the shape is that of the values");
    let mut strides: Vec<i64> =
        shape.iter().rev().scan(1, |next, n| Some(std::mem::replace(next, *next * n))).collect();
    strides.reverse();
    // SAFETY: the memory holds as many values of this kind as the shape says, contiguous, and outlives the tensor, which
    // is borrowed by `body` and dropped here. Nothing writes through it: the callers are those of this crate.
    let tensor = unsafe { Tensor::from_blob(values.as_ptr().cast(), shape, &strides, T::KIND, Device::Cpu) };
    body(&tensor)
}

/// A mark on the stream of a CUDA device.
#[derive(Debug)]
pub struct Event(*mut c_void);

// SAFETY: a c10::Event is a handle that any thread may use, one at a time.
unsafe impl Send for Event {}

impl Event {
    /// Marks the current stream of CUDA device `device` here.
    ///
    /// # Errors
    /// There is no such device, or CUDA has failed before.
    pub fn record(device: usize) -> Result<Self, NativeError> {
        let mut event = std::ptr::null_mut();
        let device = i32::try_from(device).map_err(|_| NativeError(format!("there is no CUDA device {device}")))?;
        // SAFETY: the pointer is valid for the write of one pointer.
        checked(unsafe { dualpath_event_record(device, &raw mut event) })?;
        Ok(Self(event))
    }

    /// Whether all that was asked of the stream before the mark is done.
    ///
    /// # Errors
    /// CUDA has failed.
    pub fn is_done(&self) -> Result<bool, NativeError> {
        let mut done = false;
        // SAFETY: the event lives until `self` is dropped, and `done` is valid for the write of one bool.
        checked(unsafe { dualpath_event_query(self.0, &raw mut done) })?;
        Ok(done)
    }

    /// Waits until it is.
    ///
    /// # Errors
    /// CUDA has failed.
    pub fn wait(&self) -> Result<(), NativeError> {
        // SAFETY: the event lives until `self` is dropped.
        checked(unsafe { dualpath_event_wait(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event came from `dualpath_event_record` and is not used again.
        unsafe { dualpath_event_free(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_lent_with_the_values_and_the_shape() {
        let mut array = HostArray::<i64>::zeros(6, false).unwrap();
        array.copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        let doubled = with_tensor(&array, &[2, 3], |tensor| {
            assert_eq!((tensor.size(), tensor.stride(), tensor.kind()), (vec![2, 3], vec![3, 1], Kind::Int64));
            tensor * 2
        });
        assert_eq!(Vec::<i64>::try_from(doubled.view(6)).unwrap(), [2, 4, 6, 8, 10, 12]);
        let half = HostArray::<f16>::zeros(2, false).unwrap();
        assert_eq!(with_tensor(&half, &[2, 1], |tensor| tensor.kind()), Kind::Half);
    }

    #[test]
    fn memory_that_settles_keeps_what_is_written_then() {
        // A huge page and a half, and less than one.
        for len in [3 * HUGE_PAGE / 4, 1000] {
            let mut array = HostArray::<f16>::zeros(len, false).unwrap();
            array.fill(f16::ONE);
            array.settle();
            let whole = len * 2 / HUGE_PAGE * HUGE_PAGE / 2;
            let is_same = |wanted: f16| array[..whole].iter().all(|&value| value == wanted);
            // Zeros, or what was there where the system has no huge pages.
            assert!(is_same(f16::ZERO) || is_same(f16::ONE), "{len}");
            assert!(array[whole..].iter().all(|&value| value == f16::ONE), "{len}");
            array.fill(f16::ONE);
            array.settle();
            assert!(array.iter().all(|&value| value == f16::ONE), "{len}");
        }
    }

    #[test]
    fn without_cuda_pinned_memory_and_events_are_errors_and_not_crashes() {
        if tch::Cuda::device_count() > 0 {
            return;
        }
        assert!(HostArray::<f16>::zeros(2, true).is_err());
        assert!(Event::record(0).is_err());
    }
}
