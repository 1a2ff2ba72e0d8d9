#include "native.h"

#include <stdexcept>

#include <dlfcn.h>

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "gradients.h"
#include "guarded.h"

namespace {

// A CUDA generator comes from the accelerator hooks, so that this file needs no CUDA library to link.
at::Generator seeded(const torch::Tensor &like, uint64_t seed) {
  if (like.device().is_cpu()) return at::detail::createCPUGenerator(seed);
  at::Generator generator = at::globalContext().defaultGenerator(like.device()).clone();
  generator.set_current_seed(seed);
  return generator;
}

} // namespace

char *dualpath_normal_(torch::Tensor *self, uint64_t seed) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    self->normal_(0.0, 1.0, seeded(*self, seed));
  });
}

char *dualpath_uniform_(torch::Tensor *self, uint64_t seed) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    self->uniform_(0.0, 1.0, seeded(*self, seed));
  });
}

char *dualpath_take_gradient(torch::Tensor *leaf, torch::Tensor *into, bool add) {
  return guarded([&] { take_gradient(*leaf, *into, add); });
}

char *dualpath_drop_gradient(torch::Tensor *leaf) {
  return guarded([&] { drop_gradient(*leaf); });
}

char *dualpath_fused_adamw_(torch::Tensor *parameters, torch::Tensor *gradients, torch::Tensor *exp_avg,
                            torch::Tensor *exp_avg_sq, torch::Tensor *step, double lr, double beta1, double beta2,
                            double weight_decay, double eps, torch::Tensor *grad_scale, torch::Tensor *found_inf) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    // The kernel expects the count of this very step, as torch.optim.AdamW(fused=True) passes it.
    step->add_(found_inf->neg().add_(1.0));
    at::_fused_adamw_({*parameters}, {*gradients}, {*exp_avg}, {*exp_avg_sq}, {}, {*step}, lr, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, *grad_scale, *found_inf);
  });
}

char *dualpath_pinned(int64_t len, int kind, torch::Tensor **out) {
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).pinned_memory(true);
    *out = new torch::Tensor(at::zeros({len}, options));
  });
}

char *dualpath_event_record(int device, void **event) {
  return guarded([&] {
    // The CUDA side registers its guard when it is loaded, so that this file needs no CUDA library to link.
    c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    auto made = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    made->record(guard.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))));
    *event = made.release();
  });
}

char *dualpath_event_query(void *event, bool *done) {
  return guarded([&] { *done = static_cast<c10::Event *>(event)->query(); });
}

char *dualpath_event_wait(void *event) {
  return guarded([&] { static_cast<c10::Event *>(event)->synchronize(); });
}

void dualpath_event_free(void *event) { delete static_cast<c10::Event *>(event); }

void dualpath_allow_tf32(bool allowed) { at::globalContext().setAllowTF32CuDNN(allowed); }

char *dualpath_open_library(const char *path) {
  return guarded([&] {
    if (!dlopen(path, RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  });
}

void dualpath_free_message(char *message) { free(message); }
