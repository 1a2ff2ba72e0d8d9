//! A transformer block on a CPU as one node of the graph, its backward pass written by hand in `native/block.cpp`.
//!
//! What it computes is what `method::network` composes of libtorch's operations, which is what runs on a GPU.

use tch::Tensor;

use super::{NativeError, checked, dualpath_block, tensor};

/// The weights of a block: of one dtype, contiguous, on the CPU. D is the width, H the hidden width of the MLP.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// `[6 D, D]` and `[6 D]`: shift, scale and gate of the attention, then of the MLP.
    pub modulation: [&'a Tensor; 2],
    /// `[3 D, D]` and `[3 D]`.
    pub qkv: [&'a Tensor; 2],
    /// `[D, D]` and `[D]`.
    pub proj: [&'a Tensor; 2],
    /// `[H, D]` and `[H]`.
    pub fc1: [&'a Tensor; 2],
    /// `[D, H]` and `[D]`.
    pub fc2: [&'a Tensor; 2],
}

/// The block applied to `x` `[N, T, D]`, f32, bf16 or f64 like its weights; the result has its shape and dtype. `condition`,
/// already through SiLU, is `[N, 1, D]` for one vector an image or `[N, T, D]` for one a token. Sums and statistics are f32
/// (f64 for f64). The graph goes backward once, and has no second derivative.
///
/// # Errors
/// Shapes that do not fit, tensors of another dtype than `x`, or elsewhere than on the CPU, weights that are not contiguous.
pub fn block(x: &Tensor, condition: &Tensor, weights: BlockWeights<'_>, heads: i64) -> Result<Tensor, NativeError> {
    let BlockWeights { modulation, qkv, proj, fc1, fc2 } = weights;
    let weights = [modulation, qkv, proj, fc1, fc2];
    let pointers: Vec<tensor> = weights.as_flattened().iter().map(|weight| weight.as_ptr().cast_mut()).collect();
    let mut out: tensor = std::ptr::null_mut();
    // SAFETY: all are live tensors that the callee only reads and counts references to, `pointers` has the ten that it
    // expects, and `out` is written before it returns without a message.
    checked(unsafe {
        dualpath_block(x.as_ptr().cast_mut(), condition.as_ptr().cast_mut(), pointers.as_ptr(), heads, &raw mut out)
    })?;
    // SAFETY: the callee made `out` for us, and nobody else has it.
    Ok(unsafe { Tensor::from_ptr(out) })
}
