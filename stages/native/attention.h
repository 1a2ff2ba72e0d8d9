// Attention among the tokens of each image on a CPU, forward and backward by hand.
#pragma once

#include <torch/types.h>

namespace dualpath {

struct AttentionSizes {
  int64_t images, tokens, width, heads;
};

// softmax(q k^T / sqrt(width / heads)) v, `[images tokens, width]`, of `qkv` `[images tokens, 3 width]` in f32, f64 or bf16 and its
// bias `[3 width]`, which is still to be added. Writes to `statistics` what the backward pass needs of the scores,
// `[images heads, 2, tokens]`, f32 (f64 of f64).
torch::Tensor attention(const torch::Tensor &qkv, const torch::Tensor &bias, AttentionSizes, torch::Tensor &statistics);

// Gradient of qkv, from that of `out`, which is the result of `attention`. Its sums over the tokens of each image are added to
// `d_bias` `[images, 3 width]`, of the statistics' dtype.
torch::Tensor attention_backward(const torch::Tensor &d_out, const torch::Tensor &out, const torch::Tensor &qkv,
                                 const torch::Tensor &bias, const torch::Tensor &statistics, AttentionSizes,
                                 torch::Tensor &d_bias);

} // namespace dualpath
