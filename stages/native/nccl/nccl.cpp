// Groups of GPUs for c10d.cpp, in a shared object of their own: NCCL's headers and those of CUDA come with a full torch, which
// the program neither needs nor links. Loaded after libtorch_cuda, whose symbols it takes.
#include "../c10d.h"

#include <string>

#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/headeronly/version.h>

#include "../guarded.h"

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "the program is built for libtorch 2.11");

// Makes an NCCL group of `world` ranks, of which this is `rank`, on GPU `device`. The ranks meet at the first collective. Freed
// with dualpath_group_free.
extern "C" char *dualpath_nccl_group(void *store, int rank, int world, int device, int64_t timeout_ms, void **group) {
  return guarded([&] {
    using Nccl = c10d::ProcessGroupNCCL;
    auto options = Nccl::Options::create();
    // Whoever waits for a collective has a deadline of its own and says whom it lost. NCCL's watchdog, which ends the process,
    // comes later: for a rank that does not wait.
    options->timeout = std::chrono::milliseconds(3 * timeout_ms);
    auto nccl = c10::make_intrusive<Nccl>(*static_cast<Store *>(store), rank, world, std::move(options));
    nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
    *group = new Group{std::move(nccl), std::chrono::milliseconds(timeout_ms)};
  });
}
