// SPDX-License-Identifier: Apache-2.0
// One call of attention_cpu: reads AttentionParams from standard input, whose pointers are numbers of bytes
// (0: none), then the inputs one after the other; writes the outputs. Each array ends at a page that may not
// be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "attention/cpu/kernel.h"

namespace {

constexpr size_t kAlignment = 64;
constexpr int kUnwritten = 0xcd;

size_t bytes_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

size_t divided_up(size_t a, size_t b) { return (a + b - 1) / b; }

void* allocate(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = divided_up(bytes, page);
  void* start = mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) std::abort();
  char* const end = static_cast<char*>(start) + pages * page;
  if (mprotect(end, page, PROT_NONE) != 0) std::abort();
  return std::memset(end - divided_up(bytes, kAlignment) * kAlignment, kUnwritten, bytes);
}

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::abort();
}

template <typename Pointer>
void read_input(Pointer& input) {
  const size_t bytes = bytes_of(input);
  if (bytes == 0) return;
  void* memory = allocate(bytes);
  read(memory, bytes);
  input = static_cast<Pointer>(memory);
}

template <typename Pointer>
size_t make_output(Pointer& output) {
  const size_t bytes = bytes_of(output);
  if (bytes > 0) output = static_cast<Pointer>(allocate(bytes));
  return bytes;
}

void run() {
  fastmmoe::AttentionParams params;
  read(&params, sizeof params);
  read_input(params.query);
  read_input(params.key);
  read_input(params.value);
  read_input(params.sink_logits);
  read_input(params.past_key);
  read_input(params.past_value);
  read_input(params.past_lengths);
  read_input(params.sequence_ids);
  read_input(params.sequence_offsets);
  read_input(params.position_ids);
  read_input(params.past_position_ids);
  const size_t bytes[] = {make_output(params.output), make_output(params.present_key),
                          make_output(params.present_value), make_output(params.present_position_ids),
                          make_output(params.lse)};
  fastmmoe::attention_cpu(params, [](int64_t items, const std::function<void(int64_t)>& body) {
    for (int64_t item = 0; item < items; ++item) body(item);
  });
  const void* const outputs[] = {params.output, params.present_key, params.present_value,
                                 params.present_position_ids, params.lse};
  for (int i = 0; i < 5; ++i) {
    if (std::fwrite(outputs[i], 1, bytes[i], stdout) != bytes[i]) std::abort();
  }
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
