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
    /// Of this program: whole lines, with room for `len` values.
    Own { lines: Box<[Line]>, len: usize, values: PhantomData<T> },
    /// Of libtorch: a contiguous tensor of one dimension, which nobody else has.
    Pinned { tensor: Tensor, len: usize },
}

/// A line of the cache: what is written past the caches should begin with one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

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
            let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
            Memory::Own { lines: vec![Line { _bytes: [0; 64] }; lines].into(), len, values: PhantomData }
        };
        Ok(Self { memory })
    }
}

impl<T: Element> Deref for HostArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            // SAFETY: the lines have room for `len` values and are aligned to more than a value; all bytes are initialised,
            // and every bit pattern is a value.
            Memory::Own { lines, len, .. } => unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), *len) },
            // SAFETY: the tensor has `len` values of this kind in host memory, which lives as long as `self`; every bit
            // pattern is a value. It is written through `&mut self` alone.
            Memory::Pinned { tensor, len } => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), *len) },
        }
    }
}

impl<T: Element> DerefMut for HostArray<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            // SAFETY: as above; the borrow of `lines` is exclusive.
            Memory::Own { lines, len, .. } => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), *len)
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
    fn without_cuda_pinned_memory_and_events_are_errors_and_not_crashes() {
        if tch::Cuda::device_count() > 0 {
            return;
        }
        assert!(HostArray::<f16>::zeros(2, true).is_err());
        assert!(Event::record(0).is_err());
    }
}
