// SPDX-License-Identifier: Apache-2.0
#include "testing/emulator/settings.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <thread>

#include "testing/emulator/error.h"

namespace fastmmoe::emulator {
namespace {

constexpr int64_t kUnset = -1;
std::atomic<int64_t> chosen_seed{kUnset};
std::atomic<int64_t> chosen_threads{kUnset};
std::atomic<int64_t> chosen_architecture{kUnset};

struct SharedLimit {
  int architecture;
  size_t kilobytes;
};

// CUDA C++ Programming Guide, technical specifications for each compute capability.
constexpr SharedLimit kSharedLimits[] = {{75, 64},  {80, 163},  {86, 99},   {87, 163},  {88, 163}, {89, 99},
                                         {90, 227}, {100, 227}, {103, 227}, {110, 227}, {120, 99}, {121, 99}};

int64_t from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  errno = 0;
  const int64_t value = std::strtoll(text, &end, 10);
  if (*end != '\0' || errno != 0 || value < 0) {
    throw EmulatorError(std::string(name) + " is '" + text + "', expected a whole number of 0 or more");
  }
  return value;
}

int64_t chosen(const std::atomic<int64_t>& choice, const char* name, int64_t otherwise) {
  const int64_t value = choice.load();
  return value >= 0 ? value : from_environment(name, otherwise);
}

}  // namespace

size_t max_dynamic_shared_bytes(int architecture) {
  std::string known;
  for (const SharedLimit& limit : kSharedLimits) {
    if (limit.architecture == architecture) return limit.kilobytes * 1024;
    known += " " + std::to_string(limit.architecture);
  }
  throw EmulatorError("architecture " + std::to_string(architecture) + " is not known, expected one of" +
                      known);
}

Settings current_settings() {
  const int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  Settings settings;
  settings.seed = static_cast<uint64_t>(chosen(chosen_seed, "FASTMMOE_EMULATOR_SEED", 0));
  const int64_t threads = chosen(chosen_threads, "FASTMMOE_EMULATOR_THREADS", processors);
  settings.threads = static_cast<int>(std::clamp<int64_t>(threads, 1, 256));
  settings.architecture = static_cast<int>(chosen(chosen_architecture, "FASTMMOE_EMULATOR_ARCH", 80));
  return settings;
}

}  // namespace fastmmoe::emulator

void fastmmoe_emulator_set_seed(int64_t seed) { fastmmoe::emulator::chosen_seed = seed; }
void fastmmoe_emulator_set_threads(int64_t threads) { fastmmoe::emulator::chosen_threads = threads; }
void fastmmoe_emulator_set_architecture(int64_t arch) { fastmmoe::emulator::chosen_architecture = arch; }
