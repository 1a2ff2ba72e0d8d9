// No C++ exception crosses the C interface: it becomes a message on the heap.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>

static inline char *message(const char *text) {
  char *copy = static_cast<char *>(malloc(strlen(text) + 1));
  if (copy) strcpy(copy, text);
  return copy;
}

template <typename F> static char *guarded(F &&body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &e) {
    return message(e.what());
  } catch (...) {
    return message("an unknown C++ exception");
  }
}
