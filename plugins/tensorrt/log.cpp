// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/log.h"

#include <dlfcn.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <mutex>

namespace fastmmoe {
namespace {

/// The TensorRT that loaded this library. It need not be the one of the headers: since TensorRT 11, and in
/// TensorRT-RTX, ILoggerFinder and ILogger derive from IVersionedInterface. So their functions are called by
/// their place among the virtual functions, which the version of the loaded library tells.
struct Host {
  void* finder = nullptr;           // ILoggerFinder
  void* (*get_logger)() = nullptr;  // -> ILogger
  size_t place = 0;                 // of findLogger and of log
};

std::mutex host_mutex;
Host host;

// IVersionedInterface has a language, a version and, as compilers count, two destructors.
constexpr size_t kPlaceInVersioned = 4;

/// False where the layout is not known.
bool find_place(int32_t version, size_t& place) noexcept {
  const bool is_rtx = 10700 <= version && version < 20000;  // TensorRT-RTX 1.7 and later: 10701
  const bool is_10 = 100000 <= version && version < 110000;
  place = is_10 ? 0 : kPlaceInVersioned;
  return is_rtx || version >= 100000;
}

template <typename Result, typename... Arguments>
Result call_virtual(void* object, size_t place, Arguments... arguments) noexcept {
  void** const functions = *static_cast<void***>(object);
  return reinterpret_cast<Result (*)(void*, Arguments...)>(functions[place])(object, arguments...);
}

// Several TensorRT libraries may be loaded, and their names need not be visible here: the one that counts has
// the finder's virtual functions.
Host find_host(void* finder) noexcept {
  Host result;
  Dl_info library{};
  if (finder == nullptr || dladdr(*static_cast<void**>(finder), &library) == 0) return result;
  void* const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return result;
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  if (version != nullptr && find_place(version(), result.place)) {
    result.finder = finder;
    result.get_logger = reinterpret_cast<void* (*)()>(dlsym(handle, "getLogger"));
  }
  dlclose(handle);  // it stays loaded by whoever loaded it
  return result;
}

// Asked for at every message, never kept: the finder knows the logger of an engine that carries this library
// in its plan, getLogger that of the builder and of other engines.
void* find_logger(const Host& host) noexcept {
  void* logger = host.finder == nullptr ? nullptr : call_virtual<void*>(host.finder, host.place);
  if (logger == nullptr && host.get_logger != nullptr) logger = host.get_logger();
  return logger;
}

Host current_host() noexcept {
  const std::lock_guard<std::mutex> lock(host_mutex);
  return host;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  const Host found = find_host(finder);
  const std::lock_guard<std::mutex> lock(host_mutex);
  host = found;
}

void log(nvinfer1::ILogger::Severity severity, const char* node, const char* message) noexcept {
  // Not a string, which could throw.
  std::array<char, 2048> text;
  if (node == nullptr || *node == '\0') {
    std::snprintf(text.data(), text.size(), "%s", message);
  } else {
    std::snprintf(text.data(), text.size(), "%s (node %s)", message, node);
  }
  const Host current = current_host();
  if (void* const logger = find_logger(current)) {
    const char* const line = text.data();
    call_virtual<void>(logger, current.place, static_cast<int32_t>(severity), line);
  } else {
    std::fprintf(stderr, "fastmmoe: %s\n", text.data());
  }
}

}  // namespace fastmmoe
