// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function that could be
// shared with other files: the linker would then run one instruction set everywhere.
#include "common/cpu/lanes.h"
#include "linear/cpu/finish.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

inline Vector magnitude(Vector x) {
  return reinterpret_bits<Vector>(reinterpret_bits<Bits>(x) & 0x7fffffffu);
}

// x (1 + erf(x / sqrt(2))) / 2. The polynomial is 7.1.26 of Abramowitz and Stegun, within 1.5e-7 of erf.
inline Vector gelu(Vector x) {
  const Vector z = magnitude(x) * 0.70710678f;
  const Vector t = 1.0f / (1.0f + z * 0.3275911f);
  Vector tail = all(1.061405429f);
  tail = tail * t - 1.453152027f;
  tail = tail * t + 1.421413741f;
  tail = tail * t - 0.284496736f;
  tail = tail * t + 0.254829592f;
  tail = tail * t * power_of_two(z * z * -kLog2E);  // 1 - erf(z)
  const Vector half = 0.5f * x * tail;
  return x < 0.0f ? half : x - half;
}

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u).
inline Vector gelu_tanh(Vector x) {
  const Vector u = 0.79788456f * x * (1.0f + 0.044715f * x * x);
  const Vector small = power_of_two(magnitude(u) * (-2.0f * kLog2E));
  const Vector share = 1.0f / (1.0f + small);
  return x * (u < 0.0f ? small * share : share);
}

struct Same {
  static Vector of(Vector x) { return x; }
};
struct Gelu {
  static Vector of(Vector x) { return gelu(x); }
};
struct GeluTanh {
  static Vector of(Vector x) { return gelu_tanh(x); }
};

template <typename Activation>
void finish_rows(const LinearFinish& block) {
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* const sums = block.sums + r * block.sums_stride;
    float* const y = block.y + r * block.y_stride;
    for (int64_t i = 0; i < block.columns; i += kLanes) {
      const int64_t count = block.columns - i;
      Vector value = load_some(sums + i, count);
      if (block.bias != nullptr) value += load_some(block.bias + i, count);
      value = Activation::of(value);
      if (block.residual != nullptr) value += load_some(block.residual + r * block.y_stride + i, count);
      store_some(value, y + i, count);
    }
  }
}

void finish(const LinearFinish& block) {
  switch (block.activation) {
    case linear::Activation::kNone:
      return finish_rows<Same>(block);
    case linear::Activation::kGelu:
      return finish_rows<Gelu>(block);
    case linear::Activation::kGeluTanh:
      return finish_rows<GeluTanh>(block);
  }
}

}  // namespace

FinishFunction finish_function();  // finish.cpp names it
FinishFunction finish_function() { return finish; }

}  // namespace fastmmoe::FASTMMOE_ISA
