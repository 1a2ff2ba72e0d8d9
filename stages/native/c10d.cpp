#include "c10d.h"

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/headeronly/version.h>

#include "guarded.h"

// The declarations of Gloo are those that this version's header needs.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "gloo_declarations/ are for libtorch 2.11");
// What is made here and read there: a vector of shared pointers and a number behind the options of every backend.
static_assert(sizeof(c10d::ProcessGroupGloo::Options) >=
                  sizeof(c10d::Backend::Options) + sizeof(std::vector<std::shared_ptr<int>>) + sizeof(int),
              "the options of Gloo are laid out otherwise");

namespace {

// What libtorch reads from the environment, which has no lock: set while nothing else runs yet.
[[maybe_unused]] const bool configured = [] {
  // Its flight recorder looks up the group of each collective in a map of all groups of the process, and adds it, before it takes
  // its lock (FlightRecorder::recordWithResetEnabled): ranks that are threads of one process die in it. Without a buffer it
  // returns before that, for Gloo and NCCL alike. Also where a user asks for one.
  setenv("TORCH_FR_BUFFER_SIZE", "0", 1);
  // CleanUpOnly: NCCL's watchdog would end the process where a rank is lost, before it has said which.
  if (!getenv("NCCL_ASYNC_ERROR_HANDLING")) setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", 0);
  return true;
}();

template <typename T> void *owned(T value) { return new T(std::move(value)); }
Store &store_of(void *store) { return *static_cast<Store *>(store); }
Group &group_of(void *group) { return *static_cast<Group *>(group); }
std::chrono::milliseconds ms(int64_t count) { return std::chrono::milliseconds(count); }

} // namespace

char *dualpath_store_open(const char *host, uint16_t port, bool serve, const char *prefix, int64_t timeout_ms, void **store,
                          uint16_t *port_found) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.waitWorkers = false;
    options.timeout = ms(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port_found = tcp->getPort();
    *store = owned<Store>(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp)));
  });
}

char *dualpath_store_set(void *store, const char *key, const uint8_t *bytes, size_t len) {
  return guarded([&] { store_of(store)->set(key, std::vector<uint8_t>(bytes, bytes + len)); });
}

char *dualpath_store_get(void *store, const char *key, int64_t timeout_ms, uint8_t **bytes, size_t *len) {
  return guarded([&] {
    store_of(store)->wait({key}, ms(timeout_ms));
    std::vector<uint8_t> value = store_of(store)->get(key);
    *bytes = static_cast<uint8_t *>(malloc(value.size() + 1));
    if (!*bytes) throw std::bad_alloc();
    memcpy(*bytes, value.data(), value.size());
    *len = value.size();
  });
}

char *dualpath_store_check(void *store, const char *key, bool *there) {
  return guarded([&] { *there = store_of(store)->check({key}); });
}

void dualpath_store_free(void *store) { delete static_cast<Store *>(store); }

char *dualpath_group_gloo(void *store, int rank, int world, const char *interface, const char *host, int64_t timeout_ms,
                          void **group) {
  return guarded([&] {
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(ms(timeout_ms));
    if (*interface) {
      options->devices.push_back(Gloo::createDeviceForInterface(interface));
    } else if (*host) {
      options->devices.push_back(Gloo::createDeviceForHostname(host));
    } else {
      options->devices.push_back(Gloo::createDefaultDevice());
    }
    *group = owned<Group>({c10::make_intrusive<Gloo>(store_of(store), rank, world, std::move(options))});
  });
}

char *dualpath_group_nccl(const char *library, void *store, int rank, int world, int device, int64_t timeout_ms, void **group) {
  using Make = char *(void *, int, int, int, int64_t, void **);
  Make *make = nullptr;
  char *failed = guarded([&] {
    void *opened = dlopen(library, RTLD_NOW);
    if (opened) make = reinterpret_cast<Make *>(dlsym(opened, "dualpath_nccl_group"));
    if (!make) throw std::runtime_error(dlerror());
  });
  return failed ? failed : make(store, rank, world, device, timeout_ms, group);
}

void dualpath_group_free(void *group) {
  std::unique_ptr<Group> taken(static_cast<Group *>(group));
  // Where a rank was lost, to close in order would wait for it.
  free(guarded([&] { *taken->lost ? taken->backend->abort() : taken->backend->shutdown(); }));
}

char *dualpath_group_all_reduce(void *group, torch::Tensor *tensor, void **work) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    *work = owned<Work>(group_of(group).begin([&](auto &backend) { return backend.allreduce(tensors); }));
  });
}

char *dualpath_group_broadcast(void *group, torch::Tensor *tensor, int root, void **work) {
  return guarded([&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{*tensor};
    *work = owned<Work>(group_of(group).begin([&](auto &backend) { return backend.broadcast(tensors, options); }));
  });
}

char *dualpath_work_wait(void *work) {
  std::unique_ptr<Work> taken(static_cast<Work *>(work));
  return guarded([&] { taken->wait(); });
}

void dualpath_work_free(void *work) { delete static_cast<Work *>(work); }
