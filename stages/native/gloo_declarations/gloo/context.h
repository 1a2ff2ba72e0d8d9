#pragma once

#include <chrono>

namespace gloo {
namespace transport {
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};
} // namespace transport

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
