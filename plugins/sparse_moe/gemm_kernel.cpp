// SPDX-License-Identifier: Apache-2.0
// The matrix kernel, compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function
// of the standard library that could be shared with other files: the linker would then run one instruction
// set everywhere.
#include <cstring>

#include "common/half.h"
#include "sparse_moe/gemm.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// A tile of kRows x kOutputs vector sums lives in registers: 6 x 4 of 32 registers, 4 x 2 of 16.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 6, kOutputs = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRows = 4, kOutputs = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 6, kOutputs = 4;
#else
constexpr int kLanes = 4, kRows = 4, kOutputs = 2;
#endif
static_assert(kOutputs <= kGemmScratchRows);

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }

inline Vector load_first(const float* from, int64_t count) {
  Vector value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline float sum(Vector value) {
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// y [kR, kO] with row stride y_stride from kR rows x and kO consecutive rows of w.
template <int kR, int kO>
void dot_tile(const float* const* x, const float* w, int64_t depth, float* y, int64_t y_stride) {
  Vector sums[kR][kO] = {};
  int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    Vector columns[kO];
#pragma GCC unroll 8
    for (int o = 0; o < kO; ++o) columns[o] = load(w + o * depth + d);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vector row = load(x[r] + d);
#pragma GCC unroll 8
      for (int o = 0; o < kO; ++o) sums[r][o] += row * columns[o];
    }
  }
  const int64_t left = depth - d;
  for (int r = 0; r < kR; ++r) {
    for (int o = 0; o < kO; ++o) {
      if (left > 0) sums[r][o] += load_first(x[r] + d, left) * load_first(w + o * depth + d, left);
      y[r * y_stride + o] = sum(sums[r][o]);
    }
  }
}

// The last rows, at most kR of them.
template <int kR, int kO>
void dot_last_rows(int64_t rows, const float* const* x, const float* w, int64_t depth, float* y,
                   int64_t y_stride) {
  if constexpr (kR > 0) {
    if (rows == kR) {
      dot_tile<kR, kO>(x, w, depth, y, y_stride);
    } else {
      dot_last_rows<kR - 1, kO>(rows, x, w, depth, y, y_stride);
    }
  }
}

template <int kO>
void dot_rows(const GemmBlock& block, const float* w, float* y) {
  int64_t r = 0;
  for (; r + kRows <= block.rows; r += kRows) {
    dot_tile<kRows, kO>(block.x + r, w, block.depth, y + r * block.outputs, block.outputs);
  }
  dot_last_rows<kRows - 1, kO>(block.rows - r, block.x + r, w, block.depth, y + r * block.outputs,
                               block.outputs);
}

template <typename Weight>
const float* converted(const GemmBlock& block, int64_t first, int64_t outputs) {
  const Weight* from = static_cast<const Weight*>(block.w) + first * block.depth;
  for (int64_t i = 0; i < outputs * block.depth; ++i) block.scratch[i] = to_float(from[i]);
  return block.scratch;
}

// Weight rows [outputs, depth] from `first` on, as float.
const float* float_weights(const GemmBlock& block, int64_t first, int64_t outputs) {
  switch (block.weight_type) {
    case FloatType::kFloat16:
      return converted<Float16>(block, first, outputs);
    case FloatType::kBfloat16:
      return converted<Bfloat16>(block, first, outputs);
    default:
      return static_cast<const float*>(block.w) + first * block.depth;
  }
}

}  // namespace

void gemm_block(const GemmBlock& block) {
  int64_t o = 0;
  for (; o + kOutputs <= block.outputs; o += kOutputs) {
    dot_rows<kOutputs>(block, float_weights(block, o, kOutputs), block.y + o);
  }
  for (; o < block.outputs; ++o) dot_rows<1>(block, float_weights(block, o, 1), block.y + o);
}

}  // namespace fastmmoe::FASTMMOE_ISA
