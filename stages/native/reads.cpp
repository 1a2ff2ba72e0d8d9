// Counts the operations that bring a value of a tensor to the host.
//
// A training step has none, or a GPU would stand still while the host asks. Operations are counted and not the driver's calls, so
// that the count is the same on a CPU, where tests run. Whole tensors that are copied to the host are not counted.
#include "native.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string_view>

#include <ATen/record_function.h>

#include "guarded.h"

namespace {

// One count at a time.
std::mutex counting;
std::atomic<int64_t> reads;

std::unique_ptr<at::ObserverContext> observe(const at::RecordFunction &call) {
  const std::string_view name = call.name();
  // The sizes of what the later ones return depend on values.
  for (const char *reader : {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"})
    if (name == reader) ++reads;
  return nullptr;
}

} // namespace

char *dualpath_start_counting_reads(uint64_t *handle) {
  return guarded([&] {
    std::unique_lock<std::mutex> alone(counting);
    reads = 0;
    // Of this thread, and of those that autograd goes backward on for it.
    *handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(observe).scopes({at::RecordScope::FUNCTION}));
    alone.release(); // until counting stops
  });
}

int64_t dualpath_stop_counting_reads(uint64_t handle) {
  at::removeCallback(handle);
  const int64_t found = reads;
  counting.unlock();
  return found;
}
