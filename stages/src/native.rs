//! Safe faces of the C++ functions in `native/`: what libtorch has and tch does not expose.
//!
//! Seeded draws that touch no process-wide generator, gradients taken from the leaves of a graph, the fused AdamW
//! kernel, a transformer [`block`](mod@block) for the CPU, [`memory`] that a GPU copies by itself, a count of
//! [`reads`], and the collectives of [`c10d`]. The only module of this crate with `unsafe` in it, but for the tests'
//! counting allocator; the method and the nets do not need it.

#![allow(unsafe_code)]

pub mod block;
pub mod c10d;
pub mod memory;
pub mod reads;
pub mod rows;

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use tch::Tensor;

/// A message of a C++ exception that libtorch raised.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct NativeError(pub(crate) String);

#[allow(non_camel_case_types)]
type tensor = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn dualpath_normal_(this: tensor, seed: u64) -> *mut c_char;
    fn dualpath_uniform_(this: tensor, seed: u64) -> *mut c_char;
    fn dualpath_take_gradient(leaf: tensor, into: tensor, add: bool) -> *mut c_char;
    fn dualpath_drop_gradient(leaf: tensor) -> *mut c_char;
    fn dualpath_fused_adamw_(
        parameters: tensor,
        gradients: tensor,
        exp_avg: tensor,
        exp_avg_sq: tensor,
        step: tensor,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: tensor,
        found_inf: tensor,
    ) -> *mut c_char;
    fn dualpath_block(
        x: tensor,
        condition: tensor,
        weights: *const tensor,
        heads: i64,
        out: *mut tensor,
    ) -> *mut c_char;
    fn dualpath_start_counting_reads(handle: *mut u64) -> *mut c_char;
    fn dualpath_stop_counting_reads(handle: u64) -> i64;
    fn dualpath_allow_tf32(allowed: bool);
    fn dualpath_open_library(path: *const c_char) -> *mut c_char;
    fn dualpath_free_message(message: *mut c_char);
}

fn checked(message: *mut c_char) -> Result<(), NativeError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message that is not null is a NUL-terminated string that the callee allocated for us.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: the message came from the same library and is not used again.
    unsafe { dualpath_free_message(message) };
    // The first line says what happened; what follows is a C++ backtrace.
    Err(NativeError(text.lines().next().unwrap_or_default().to_owned()))
}

/// Fills `tensor` in place with N(0, 1) from a generator of its own, seeded with `seed`.
/// The values depend on (seed, shape, dtype, device kind), never on other draws or threads.
pub fn fill_normal(tensor: &mut Tensor, seed: u64) -> Result<(), NativeError> {
    // SAFETY: the pointer is that of a live tensor, and the callee keeps nothing.
    checked(unsafe { dualpath_normal_(tensor.as_mut_ptr(), seed) })
}

/// Fills `tensor` in place with U[0, 1) from a generator of its own, seeded with `seed`.
pub fn fill_uniform(tensor: &mut Tensor, seed: u64) -> Result<(), NativeError> {
    // SAFETY: as above.
    checked(unsafe { dualpath_uniform_(tensor.as_mut_ptr(), seed) })
}

/// Moves the gradient of `leaf` to `into` (same shape, f32): in place of what is there, or added to it. A leaf without
/// one counts as one of zeros; afterwards it has none.
pub fn take_gradient(leaf: &Tensor, into: &mut Tensor, add: bool) -> Result<(), NativeError> {
    // SAFETY: both are live tensors, and the callee keeps neither.
    checked(unsafe { dualpath_take_gradient(leaf.as_ptr().cast_mut(), into.as_mut_ptr(), add) })
}

/// Forgets the gradient of `leaf`, if it has one.
pub fn drop_gradient(leaf: &Tensor) -> Result<(), NativeError> {
    // SAFETY: it is a live tensor, and the callee does not keep it.
    checked(unsafe { dualpath_drop_gradient(leaf.as_ptr().cast_mut()) })
}

/// The flat f32 buffers that one AdamW update reads and writes; all of one length on one device.
#[derive(Debug)]
pub struct AdamWBuffers<'a> {
    /// Master weights, updated in place.
    pub parameters: &'a mut Tensor,
    /// Gradients, divided by `grad_scale` in place.
    pub gradients: &'a mut Tensor,
    /// First moment, updated in place.
    pub exp_avg: &'a mut Tensor,
    /// Second moment, updated in place.
    pub exp_avg_sq: &'a mut Tensor,
    /// f32 scalar: updates done so far, advanced by one.
    pub step: &'a mut Tensor,
    /// f32 scalar: how many times smaller the gradients shall be.
    pub grad_scale: &'a mut Tensor,
    /// f32 scalar: 1 skips the update (a gradient was not finite), 0 does it. No host synchronisation.
    pub found_inf: &'a mut Tensor,
}

/// The constants of AdamW (Loshchilov and Hutter).
#[derive(Debug, Clone, Copy)]
pub struct AdamWConstants {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// One AdamW step in one pass over the flat buffers.
pub fn fused_adamw(buffers: &mut AdamWBuffers<'_>, constants: AdamWConstants) -> Result<(), NativeError> {
    let AdamWConstants { lr, beta1, beta2, weight_decay, eps } = constants;
    // SAFETY: all are live tensors, and the callee keeps none of them.
    checked(unsafe {
        dualpath_fused_adamw_(
            buffers.parameters.as_mut_ptr(),
            buffers.gradients.as_mut_ptr(),
            buffers.exp_avg.as_mut_ptr(),
            buffers.exp_avg_sq.as_mut_ptr(),
            buffers.step.as_mut_ptr(),
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
            buffers.grad_scale.as_mut_ptr(),
            buffers.found_inf.as_mut_ptr(),
        )
    })
}

/// Whether cuDNN may round the inputs of f32 convolutions to TF32 (10 bits of mantissa), for the whole process; at
/// first it may.
pub fn allow_tf32(allowed: bool) {
    // SAFETY: it sets a flag.
    unsafe { dualpath_allow_tf32(allowed) };
}

/// Opens a shared library for the rest of the process, its symbols global. Meant for `libtorch_cuda.so`, which
/// registers its kernels with libtorch as it is loaded; that must happen before any other call to libtorch.
pub fn open_library(path: &Path) -> Result<(), NativeError> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| NativeError("a library's path holds a zero byte".to_owned()))?;
    // SAFETY: the path is a NUL-terminated string, and the callee keeps nothing of it.
    checked(unsafe { dualpath_open_library(path.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let draw = |seed| {
            let mut t = Tensor::zeros([3, 40], (Kind::Float, Device::Cpu));
            fill_normal(&mut t, seed).unwrap();
            t
        };
        let first = draw(7);
        let _ = draw(8);
        assert!(first.equal(&draw(7)));
        assert!(!first.equal(&draw(8)));
    }

    #[test]
    fn a_gradient_is_put_or_added_and_then_gone() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let flat = Tensor::full([4], 9.0, (Kind::Float, Device::Cpu));
            let leaf = Tensor::ones([2], (kind, Device::Cpu)).set_requires_grad(true);
            let backward = || (&leaf * 3.0).sum(Kind::Float).backward();
            let take = |add| take_gradient(&leaf, &mut flat.narrow(0, 1, 2), add).unwrap();
            let found = || Vec::<f32>::try_from(&flat).unwrap();
            backward();
            take(false);
            assert_eq!(found(), [9.0, 3.0, 3.0, 9.0], "{kind:?}");
            backward();
            take(true);
            take(true);
            assert_eq!(found(), [9.0, 6.0, 6.0, 9.0], "{kind:?}");
            backward();
            drop_gradient(&leaf).unwrap();
            take(false);
            assert_eq!(found(), [9.0, 0.0, 0.0, 9.0], "{kind:?}");
        }
    }

    #[test]
    fn a_cpp_exception_becomes_an_error() {
        let mut integers = Tensor::zeros([3], (Kind::Int64, Device::Cpu));
        assert!(fill_normal(&mut integers, 1).unwrap_err().to_string().starts_with("libtorch: "));
    }
}
