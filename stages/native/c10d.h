// c10d, the engine below torch.distributed, behind a C interface: a store of keys on one rank, groups of ranks that
// reduce and broadcast tensors, and the exchange of gradients while the backward pass still runs.
//
// Messages as in native.h. What a function hands out through `void **` the caller frees with the function named.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

using Store = c10::intrusive_ptr<c10d::Store>;

// A collective under way.
struct Work {
  c10::intrusive_ptr<c10d::Work> begun;
  std::chrono::milliseconds patience;
  std::shared_ptr<std::atomic<bool>> lost;

  // NCCL's would only make the device wait, without a deadline: a rank that is lost would be noticed by nobody.
  void wait() {
    try {
      begun->wait(patience);
    } catch (...) {
      *lost = true;
      throw;
    }
  }
};

// Ranks that reduce and copy together.
struct Group {
  c10::intrusive_ptr<c10d::Backend> backend;
  // How long to wait for a collective; 0 where the backend has a deadline itself.
  std::chrono::milliseconds patience = kNoTimeout;
  // Whether a collective has failed.
  std::shared_ptr<std::atomic<bool>> lost = std::make_shared<std::atomic<bool>>(false);

  template <typename Begin> Work begin(Begin &&collective) const {
    try {
      return {collective(*backend), patience, lost};
    } catch (...) {
      *lost = true;
      throw;
    }
  }
};

extern "C" {

// Opens the store at host:port, its keys behind `prefix`; `serve` makes this the one that holds it, and port 0 then
// takes a free one. Waits for it at most `timeout_ms`, which also bounds every later wait for an answer. Freed with
// dualpath_store_free.
char *dualpath_store_open(const char *host, uint16_t port, bool serve, const char *prefix, int64_t timeout_ms, void **store,
                          uint16_t *port_found);
char *dualpath_store_set(void *store, const char *key, const uint8_t *bytes, size_t len);
// Waits for a key at most `timeout_ms`. The bytes are freed with dualpath_free_message.
char *dualpath_store_get(void *store, const char *key, int64_t timeout_ms, uint8_t **bytes, size_t *len);
char *dualpath_store_check(void *store, const char *key, bool *there);
void dualpath_store_free(void *store);

// Makes a Gloo group of `world` ranks, of which this is `rank`; waits for all of them. `interface` names the network
// interface; without one, `host` is what is bound to, and without either what the machine's name resolves to. A
// collective that takes longer than `timeout_ms` fails. Freed with dualpath_group_free.
char *dualpath_group_gloo(void *store, int rank, int world, const char *interface, const char *host, int64_t timeout_ms,
                          void **group);
// An NCCL group for tensors on GPU `device`, by the shared object at `library` (nccl/nccl.cpp); libtorch_cuda must be
// loaded. The ranks meet at the first collective. Freed as above.
char *dualpath_group_nccl(const char *library, void *store, int rank, int world, int device, int64_t timeout_ms, void **group);
void dualpath_group_free(void *group);

// Sums `tensor` over the ranks, in place, or copies that of `root` to all. All ranks call the same in the same order.
// The tensor is at rest after dualpath_work_wait, which also frees the work.
char *dualpath_group_all_reduce(void *group, torch::Tensor *tensor, void **work);
char *dualpath_group_broadcast(void *group, torch::Tensor *tensor, int root, void **work);
char *dualpath_work_wait(void *work);
void dualpath_work_free(void *work);

// Sums flat f32 `gradients` over the ranks of a group, in buckets of at least `bucket` values, from the end of the
// buffer to its beginning: the backward pass comes to them in that order. `leaves` are the parameters in the order of
// the buffer, of any dtype: their gradients are taken to `gradients` before a bucket is sent. Freed with
// dualpath_exchange_free.
char *dualpath_exchange_new(void *group, torch::Tensor *const *leaves, size_t count, torch::Tensor *gradients,
                            int64_t bucket, void **exchange);
// The next backward pass is the last of its step: a bucket is sent as soon as all its gradients are there. `add`:
// `gradients` holds those of passes before.
char *dualpath_exchange_arm(void *exchange, bool add);
// Sends what was not, because no gradient reached it, and waits for all. `early` counts the buckets that were sent
// during the backward pass, of `buckets` in all.
char *dualpath_exchange_finish(void *exchange, int64_t *early, int64_t *buckets);
void dualpath_exchange_free(void *exchange);
}
