// SPDX-License-Identifier: Apache-2.0
// A product by multiply_panels: reads a Call, rows [T, K], tiles, scales and zeros from standard input;
// writes which arithmetic it was, and y. Each thread has a range of the panels.
#include <thread>
#include <vector>

#include "common/cpu/panels/panels.h"
#include "testing/host_memory.h"

namespace {

using namespace fastmmoe;

struct Call {
  int64_t format, outputs, columns, group_size, has_zeros, is_exact, rows, first_panel, panels, y_stride,
      threads,
      are_apart;  // rows, by distances that differ; else one follows the other
};

template <typename Value>
const Value* read_array(int64_t count) {
  if (count == 0) return nullptr;
  const size_t bytes = static_cast<size_t>(count) * sizeof(Value);
  void* memory = testing::allocate(bytes, sizeof(Value));
  testing::read(memory, bytes);
  return static_cast<const Value*>(memory);
}

// What is not written is NaN in every type.
std::byte* allocate_rows(int64_t bytes) {
  void* rows = testing::allocate(static_cast<size_t>(bytes));
  return static_cast<std::byte*>(std::memset(rows, 0xff, static_cast<size_t>(bytes)));
}

// What a kernel finds on a new thread's stack would be zeros.
[[gnu::noinline]] void spoil_stack() {
  volatile int64_t stack[32 << 10];
  for (volatile int64_t& place : stack) place = -1;
}

void multiply(const PanelProduct& product, int64_t count) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) {
    PanelProduct part = product;
    const int64_t begin = product.panels * i / count, end = product.panels * (i + 1) / count;
    part.first_panel += begin;
    part.panels = end - begin;
    part.y += begin * kPanelOutputs;
    threads.emplace_back([part] {
      spoil_stack();
      multiply_panels(part);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void run() {
  Call call;
  testing::read(&call, sizeof call);
  const int64_t all_panels = (call.outputs + kPanelOutputs - 1) / kPanelOutputs;
  const int64_t groups = call.group_size == 0 ? 0 : (call.columns + call.group_size - 1) / call.group_size;
  const int64_t scales = all_panels * groups * kPanelOutputs;
  PanelMatrix matrix{};
  matrix.format = static_cast<PanelFormat>(call.format);
  matrix.outputs = call.outputs;
  matrix.columns = call.columns;
  matrix.group_size = call.group_size;
  const auto* x = read_array<float>(call.rows * call.columns);
  matrix.tiles = read_array<std::byte>(all_panels * panel_bytes(matrix.format, call.columns));
  matrix.scale = read_array<Float16>(scales);
  matrix.zero = read_array<int8_t>(call.has_zeros ? scales : 0);
  const PanelRows rows = panel_rows(matrix.format, call.columns, call.group_size, call.is_exact != 0);
  std::vector<const std::byte*> pointers;
  std::byte* const together = allocate_rows(call.rows * rows.bytes);
  for (int64_t r = 0; r < call.rows; ++r) {
    std::byte* row = together + r * rows.bytes;
    if (call.are_apart) {
      if (r % 3 == 0) allocate_rows(rows.bytes);
      row = allocate_rows(rows.bytes);
    }
    for (int64_t c = 0; c < call.columns; c += PanelRows::kGranule) {
      const int64_t left = call.columns - c;
      rows.prepare(x + r * call.columns + c, c, left < PanelRows::kGranule ? left : PanelRows::kGranule, row);
    }
    pointers.push_back(row);
  }
  const size_t size = static_cast<size_t>(call.rows * call.y_stride) * sizeof(float);
  auto* y = static_cast<float*>(testing::allocate(size));
  multiply({&matrix, &rows, call.first_panel, call.panels, pointers.data(), call.rows, y, call.y_stride},
           call.threads);
  const auto arithmetic = static_cast<int64_t>(rows.arithmetic);
  testing::write(&arithmetic, sizeof arithmetic);
  testing::write(y, size);
}

}  // namespace

int main() { return fastmmoe::testing::run_program(run); }
