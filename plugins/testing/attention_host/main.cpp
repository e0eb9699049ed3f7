// SPDX-License-Identifier: Apache-2.0
// One call of attention_cpu: reads AttentionParams from standard input, whose pointers are numbers of bytes
// (0: none), then the inputs one after the other; writes the outputs. Each array ends at a page that may not
// be touched.
#include <cstdint>

#include "attention/cpu/kernel.h"
#include "testing/host_memory.h"

namespace {

using fastmmoe::testing::allocate;
using fastmmoe::testing::read;
using fastmmoe::testing::write;

size_t bytes_of(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

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
  for (int i = 0; i < 5; ++i) write(outputs[i], bytes[i]);
}

}  // namespace

int main() { return fastmmoe::testing::run_program(run); }
