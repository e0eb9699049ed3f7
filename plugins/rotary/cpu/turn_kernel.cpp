// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function that could be
// shared with other files: the linker would then run one instruction set everywhere.
#include "common/cpu/lanes.h"
#include "rotary/cpu/turn.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// One head: x[i] / root of the mean square * norm[i], or x[i].
class Head {
 public:
  Head(const RotaryParams& params, const float* x) : x_(x), norm_(params.norm) {
    if (norm_ == nullptr) return;
    Vector squares = {};
    for (int64_t i = 0; i < 2 * params.P; i += kLanes) {
      const Vector value = load_some(x + i, 2 * params.P - i);
      squares += value * value;
    }
    float sum = 0.0f;
    for (int i = 0; i < kLanes; ++i) sum += squares[i];
    factor_ = 1.0f / __builtin_sqrtf(sum / static_cast<float>(2 * params.P) + params.epsilon);
  }

  Vector operator()(int64_t i, int64_t count) const {
    const Vector value = load_some(x_ + i, count);
    return norm_ == nullptr ? value : value * factor_ * load_some(norm_ + i, count);
  }

 private:
  const float* x_;
  const float* norm_;
  float factor_ = 1.0f;
};

void turn(const RotaryParams& params, int64_t begin, int64_t end) {
  const int64_t P = params.P;
  for (int64_t h = begin; h < end; ++h) {
    const Head head(params, params.x + h * 2 * P);
    float* const y = params.y + h * 2 * P;
    const int64_t row = h / params.N * P;
    for (int64_t i = 0; i < P; i += kLanes) {
      const int64_t count = P - i;
      const Vector a = head(i, count), b = head(P + i, count);
      const Vector cos = load_some(params.cos + row + i, count), sin = load_some(params.sin + row + i, count);
      store_some(a * cos - b * sin, y + i, count);
      store_some(b * cos + a * sin, y + P + i, count);
    }
  }
}

}  // namespace

TurnFunction turn_function();  // kernel.cpp names it
TurnFunction turn_function() { return turn; }

}  // namespace fastmmoe::FASTMMOE_ISA
