// SPDX-License-Identifier: Apache-2.0
// Of programs that tests run, which read standard input: arrays, each of which ends at a page that may not be
// touched, and their main function.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace fastmmoe::testing {

constexpr size_t kAlignment = 64;
constexpr int kUnwritten = 0xcd;

inline size_t divided_up(size_t a, size_t b) { return (a + b - 1) / b; }

inline void* allocate(size_t bytes, size_t alignment = kAlignment) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = divided_up(bytes, page);
  void* start = mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) std::abort();
  char* const end = static_cast<char*>(start) + pages * page;
  if (mprotect(end, page, PROT_NONE) != 0) std::abort();
  return std::memset(end - divided_up(bytes, alignment) * alignment, kUnwritten, bytes);
}

inline void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::abort();
}

inline void write(const void* from, size_t bytes) {
  if (std::fwrite(from, 1, bytes, stdout) != bytes) std::abort();
}

/// What main returns: an exception's message goes to standard error.
inline int run_program(void (*run)()) {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace fastmmoe::testing
