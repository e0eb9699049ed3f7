// SPDX-License-Identifier: Apache-2.0
// Calls of FmmSparseMoE, FmmLinear, FmmVisionAttention and FmmRotary on the CPU, one after the other from
// standard input: which operator, its parameters, whose pointers are numbers of bytes (0: none), then the
// arrays. Writes the name of the instruction set, 16 bytes, and the output of each call. An array ends at a
// page that may not be touched. Each call is made with 1, 2 and 4 threads and twice at the same time; all
// must write the same bits.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "common/check.h"
#include "linear/cpu/kernel.h"
#include "rotary/cpu/kernel.h"
#include "sparse_moe/cpu/kernel.h"
#include "testing/host_memory.h"
#include "vision_attention/cpu/kernel.h"

extern "C" const char* FmmCpuIsa();

namespace {

using namespace fastmmoe;
using testing::allocate;
using testing::read;

enum class Operator : int64_t { kSparseMoe, kLinear, kVisionAttention, kRotary };

/// Threads that start together and take items by turns, so that each has some of a few short ones.
ParallelFor on_threads(int64_t threads) {
  return [threads](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> started{0};
    const auto work = [&](int64_t first) {
      ++started;
      while (started < threads) std::this_thread::yield();
      for (int64_t i = first; i < count; i += threads) body(i);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
  };
}

template <typename Element>
void read_input(const Element*& input) {
  const auto bytes = reinterpret_cast<uintptr_t>(input);
  if (bytes == 0) return;
  void* memory;
  if constexpr (std::is_void_v<Element>) {
    memory = allocate(bytes, 1);
  } else {
    memory = allocate(bytes, sizeof(Element));
  }
  read(memory, bytes);
  input = static_cast<const Element*>(memory);
}

template <typename... Inputs>
void read_inputs(Inputs&... inputs) {
  (read_input(inputs), ...);
}

/// Of a call: call(output, parallel_for) writes it.
template <typename Call>
void check_and_write(uintptr_t bytes, const Call& call) {
  const auto new_output = [&] { return static_cast<float*>(allocate(bytes, sizeof(float))); };
  float* const expected = new_output();
  call(expected, on_threads(1));
  for (int64_t threads : {2, 4}) {
    float* const found = new_output();
    call(found, on_threads(threads));
    CHECK(std::memcmp(found, expected, bytes) == 0, threads, " threads wrote other bits than one");
  }
  float* const found[] = {new_output(), new_output()};
  on_threads(2)(2, [&](int64_t i) { call(found[i], on_threads(2)); });
  for (const float* output : found) {
    CHECK(std::memcmp(output, expected, bytes) == 0, "two calls at once wrote other bits than one");
  }
  testing::write(expected, bytes);
}

void run_sparse_moe() {
  SparseMoeParams params;
  read(&params, sizeof params);
  read_inputs(params.hidden_states, params.router_logits, params.visual_index, params.correction_bias,
              params.gate_up, params.down, params.gate_up_packed.scale, params.gate_up_packed.zero,
              params.down_packed.scale, params.down_packed.zero, params.gate_up_bias, params.down_bias);
  check_and_write(reinterpret_cast<uintptr_t>(params.output), [&](float* output, const ParallelFor& threads) {
    SparseMoeParams call = params;
    call.output = output;
    sparse_moe_cpu(call, threads);
  });
}

void run_linear() {
  LinearParams params;
  read(&params, sizeof params);
  read_inputs(params.x, params.weight, params.bias, params.scale, params.zero, params.residual);
  check_and_write(reinterpret_cast<uintptr_t>(params.y), [&](float* output, const ParallelFor& threads) {
    LinearParams call = params;
    call.y = output;
    linear_cpu(call, threads);
  });
}

void run_vision_attention() {
  VisionAttentionParams params;
  read(&params, sizeof params);
  read_inputs(params.qkv);
  check_and_write(reinterpret_cast<uintptr_t>(params.output), [&](float* output, const ParallelFor& threads) {
    VisionAttentionParams call = params;
    call.output = output;
    vision_attention_cpu(call, threads);
  });
}

void run_rotary() {
  RotaryParams params;
  read(&params, sizeof params);
  read_inputs(params.x, params.cos, params.sin, params.norm);
  check_and_write(reinterpret_cast<uintptr_t>(params.y), [&](float* output, const ParallelFor& threads) {
    RotaryParams call = params;
    call.y = output;
    rotary_cpu(call, threads);
  });
}

void run() {
  char isa[16] = {};
  const char* const name = FmmCpuIsa();
  CHECK(name != nullptr, "no such instruction set");
  std::snprintf(isa, sizeof isa, "%s", name);
  testing::write(isa, sizeof isa);
  Operator next;
  while (std::fread(&next, 1, sizeof next, stdin) == sizeof next) {
    if (next == Operator::kSparseMoe) {
      run_sparse_moe();
    } else if (next == Operator::kLinear) {
      run_linear();
    } else if (next == Operator::kVisionAttention) {
      run_vision_attention();
    } else {
      run_rotary();
    }
  }
}

}  // namespace

int main() { return fastmmoe::testing::run_program(run); }
