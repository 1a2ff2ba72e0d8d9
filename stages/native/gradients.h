// Gradients on their way from the leaves of the graph to a flat buffer.
#pragma once

#include <torch/torch.h>

// Forgets the gradient of `leaf`, if it has one.
inline void drop_gradient(const torch::Tensor &leaf) { leaf.mutable_grad().reset(); }

// Moves the gradient of `leaf` to `into`, of the same shape and f32: in place of what is there, or added to it. A leaf
// that has none counts as one of zeros. The leaf has none afterwards, so that the next backward pass hands over what it
// computes as it is and adds to nothing.
inline void take_gradient(const torch::Tensor &leaf, torch::Tensor into, bool add) {
  torch::NoGradGuard no_grad;
  torch::Tensor &gradient = leaf.mutable_grad();
  if (!gradient.defined()) {
    if (!add) into.zero_();
  } else if (add) {
    into.add_(gradient);
  } else {
    into.copy_(gradient);
  }
  gradient.reset();
}
