// The few functions of libtorch that tch does not expose, behind a C interface.
//
// Every function returns nullptr when it succeeded, else a message on the heap that the caller frees
// with dualpath_free_message. No C++ exception crosses the boundary.
#pragma once

#include <cstdint>
#include <torch/torch.h>

extern "C" {

// Fills `self` in place from a generator of its own, seeded with `seed`: standard normal, or uniform on [0, 1).
// The process-wide generators are neither read nor moved, so draws on other threads cannot interfere.
char *dualpath_normal_(torch::Tensor *self, uint64_t seed);
char *dualpath_uniform_(torch::Tensor *self, uint64_t seed);

// Moves the gradient of `leaf` to `into`, as gradients.h says.
char *dualpath_take_gradient(torch::Tensor *leaf, torch::Tensor *into, bool add);
// Forgets it.
char *dualpath_drop_gradient(torch::Tensor *leaf);

// One AdamW update over flat buffers of one shape (ATen's fused kernel): `step` is a f32 scalar tensor that is advanced
// first. Gradients are divided by `grad_scale` (f32 scalar tensor) first, in place. `found_inf` (f32 scalar tensor) at
// 1 leaves everything as it was, the step count included.
char *dualpath_fused_adamw_(torch::Tensor *parameters, torch::Tensor *gradients, torch::Tensor *exp_avg,
                            torch::Tensor *exp_avg_sq, torch::Tensor *step, double lr, double beta1, double beta2,
                            double weight_decay, double eps, torch::Tensor *grad_scale, torch::Tensor *found_inf);

// Makes `*out` a block of the transformer applied to `x` [N, T, D], a node of the graph; CPU, f32, f64 or bf16, all
// tensors of one dtype. `condition` is [N, 1, D] or [N, T, D], already through SiLU. `weights` are ten: weight and bias
// of adaLN [6D, D], qkv [3D, D], proj [D, D], fc1 [H, D] and fc2 [D, H]. The caller owns `*out`.
char *dualpath_block(torch::Tensor *x, torch::Tensor *condition, torch::Tensor *const *weights, int64_t heads,
                     torch::Tensor **out);

// From here to the call with the same handle, on the same thread, counts the operations that bring a value of a
// tensor to the host. Another count waits until then.
char *dualpath_start_counting_reads(uint64_t *handle);
int64_t dualpath_stop_counting_reads(uint64_t handle);

// Makes `*out` a one-dimensional tensor of `len` values of the scalar type `kind` (c10's number) in pinned memory,
// zeros. Pinned memory is what a GPU copies without the help of the processor. The caller owns `*out`.
char *dualpath_pinned(int64_t len, int kind, torch::Tensor **out);

// Makes `*event` a mark on the current stream of a CUDA device: it is done when all that was asked of the stream before
// it is done. The caller frees it with dualpath_event_free.
char *dualpath_event_record(int device, void **event);
// Whether it is done; never waits.
char *dualpath_event_query(void *event, bool *done);
// Waits until it is done.
char *dualpath_event_wait(void *event);
void dualpath_event_free(void *event);

// Whether cuDNN may round the inputs of f32 convolutions to TF32, for the whole process.
void dualpath_allow_tf32(bool allowed);

// Opens a shared library and puts its symbols and operators at everybody's disposal (libtorch_cuda.so registers its
// kernels that way). It stays open.
char *dualpath_open_library(const char *path);

void dualpath_free_message(char *message);
}
