// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function of the standard
// library that could be shared with other files: the linker would then run one instruction set everywhere.
#include "common/cpu/lanes.h"
#include "sparse_moe/cpu/rows.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

using namespace sparse_moe;

constexpr float kLog2E = 0x1.715476p0f;

// x sigmoid(alpha x), by a power that is at most 1.
inline Vector gated(Vector x, float alpha) {
  const Vector scaled = x * (alpha * kLog2E);
  const Vector power = power_of_two(scaled > 0.0f ? -scaled : scaled);
  const Vector share = all(1.0f) / (power + 1.0f);
  return x * (scaled > 0.0f ? share : power * share);
}

inline Vector activate(const GatedBlock& block, Vector gate, Vector up) {
  if (block.activation == Activation::kSwiglu) return gated(gate, 1.0f) * up;
  const Vector limit = all(block.limit), least = -limit;
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < least ? least : up;
  return (up + 1.0f) * gated(gate, kSwigluOaiAlpha);
}

void activate_block(const GatedBlock& block) {
  for (int64_t c = 0; c < block.columns; c += kLanes) {
    const int64_t count = block.columns - c < kLanes ? block.columns - c : kLanes;
    const Vector gate_bias = block.gate_bias == nullptr ? Vector{} : load_some(block.gate_bias + c, count);
    const Vector up_bias = block.up_bias == nullptr ? Vector{} : load_some(block.up_bias + c, count);
    for (int64_t r = 0; r < block.rows; ++r) {
      const Vector gate = load_some(block.gate + r * block.stride + c, count) + gate_bias;
      const Vector up = load_some(block.up + r * block.stride + c, count) + up_bias;
      store_some(activate(block, gate, up), block.to + r * block.to_stride + c, count);
    }
  }
}

void add_row(const float* from, const float* bias, float weight, int64_t columns, float* to) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int64_t count = columns - c < kLanes ? columns - c : kLanes;
    const Vector values = load_some(from + c, count);
    const Vector sum = bias == nullptr ? values : values + load_some(bias + c, count);
    store_some(load_some(to + c, count) + sum * weight, to + c, count);
  }
}

}  // namespace

RowFunctions row_functions();  // rows.cpp names it
RowFunctions row_functions() { return {activate_block, add_row}; }

}  // namespace fastmmoe::FASTMMOE_ISA
