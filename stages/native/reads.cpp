// Counts the operations that make the host wait for a device: reads of a value, and copies that the host waits for.
//
// A training step has none, or a GPU would stand still while the host asks. The count is of operations and not of the
// driver's calls, so that it is the same on a CPU, where tests run.
#include "native.h"

#include <atomic>
#include <memory>
#include <string_view>

#include <ATen/record_function.h>

#include "guarded.h"

namespace {

std::atomic<int64_t> reads;

// copy_(self, src, non_blocking)
bool is_awaited_copy(const at::RecordFunction &call) {
  const auto inputs = call.inputs();
  if (inputs.size() < 3 || !inputs[0].isTensor() || !inputs[1].isTensor()) return false;
  const bool crosses = inputs[0].toTensor().device().type() != inputs[1].toTensor().device().type();
  return crosses && !(inputs[2].isBool() && inputs[2].toBool());
}

std::unique_ptr<at::ObserverContext> observe(const at::RecordFunction &call) {
  const std::string_view name = call.name();
  // The sizes of what the later ones return depend on values.
  for (const char *reader : {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select"})
    if (name == reader) ++reads;
  if (name == "aten::copy_" && is_awaited_copy(call)) ++reads;
  return nullptr;
}

} // namespace

char *dualpath_start_counting_reads(uint64_t *handle) {
  return guarded([&] {
    reads = 0;
    // Of this thread, and of those that autograd goes backward on for it.
    *handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(observe).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
  });
}

int64_t dualpath_stop_counting_reads(uint64_t handle) {
  at::removeCallback(handle);
  return reads;
}
