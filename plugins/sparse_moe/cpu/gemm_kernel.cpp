// SPDX-License-Identifier: Apache-2.0
// The matrix kernel, compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function
// of the standard library that could be shared with other files: the linker would then run one instruction
// set everywhere.
#include <cstring>

#include "common/half.h"
#include "sparse_moe/cpu/gemm.h"

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
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t HalfBits __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// The first `count` values as float; lanes after them are 0.
inline Vector load(const float* from, int64_t count = kLanes) {
  Vector value = {};
  std::memcpy(&value, from, count * sizeof *from);
  return value;
}

inline Vector load(const Float16* from, int64_t count = kLanes) {
  HalfBits bits = {};
  std::memcpy(&bits, from, count * sizeof *from);
  return float_from_float16<Vector>(__builtin_convertvector(bits, Bits));
}

inline Vector load(const Bfloat16* from, int64_t count = kLanes) {
  HalfBits bits = {};
  std::memcpy(&bits, from, count * sizeof *from);
  return float_from_bfloat16<Vector>(__builtin_convertvector(bits, Bits));
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
template <int kR, int kO, typename Weight>
void dot_tile(const float* const* x, const Weight* w, int64_t depth, float* y, int64_t y_stride) {
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
      if (left > 0) sums[r][o] += load(x[r] + d, left) * load(w + o * depth + d, left);
      y[r * y_stride + o] = sum(sums[r][o]);
    }
  }
}

// The last rows, at most kR of them.
template <int kR, int kO, typename Weight>
void dot_last_rows(int64_t rows, const float* const* x, const Weight* w, int64_t depth, float* y,
                   int64_t y_stride) {
  if constexpr (kR > 0) {
    if (rows == kR) {
      dot_tile<kR, kO>(x, w, depth, y, y_stride);
    } else {
      dot_last_rows<kR - 1, kO>(rows, x, w, depth, y, y_stride);
    }
  }
}

template <int kO, typename Weight>
void dot_rows(const GemmBlock& block, const Weight* w, float* y) {
  int64_t r = 0;
  for (; r + kRows <= block.rows; r += kRows) {
    dot_tile<kRows, kO>(block.x + r, w, block.depth, y + r * block.outputs, block.outputs);
  }
  dot_last_rows<kRows - 1, kO>(block.rows - r, block.x + r, w, block.depth, y + r * block.outputs,
                               block.outputs);
}

template <typename Weight>
void convert(const Weight* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = count - i < kLanes ? count - i : kLanes;
    const Vector values = lanes == kLanes ? load(from + i) : load(from + i, lanes);
    std::memcpy(to + i, &values, lanes * sizeof(float));
  }
}

// Columns o to o + kO of y. Weights that several tiles of rows use are converted once for all of them.
template <int kO, typename Weight>
void multiply_outputs(const GemmBlock& block, const Weight* w, int64_t o) {
  if (sizeof(Weight) == sizeof(float) || block.rows <= kRows) {
    dot_rows<kO>(block, w + o * block.depth, block.y + o);
  } else {
    convert(w + o * block.depth, kO * block.depth, block.scratch);
    dot_rows<kO>(block, block.scratch, block.y + o);
  }
}

template <typename Weight>
void multiply(const GemmBlock& block) {
  const Weight* w = static_cast<const Weight*>(block.w);
  int64_t o = 0;
  for (; o + kOutputs <= block.outputs; o += kOutputs) multiply_outputs<kOutputs>(block, w, o);
  for (; o < block.outputs; ++o) multiply_outputs<1>(block, w, o);
}

void gemm_block(const GemmBlock& block) {
  switch (block.weight_type) {
    case FloatType::kFloat:
      return multiply<float>(block);
    case FloatType::kFloat16:
      return multiply<Float16>(block);
    case FloatType::kBfloat16:
      return multiply<Bfloat16>(block);
  }
}

}  // namespace

GemmBlockFunction gemm_block_function();  // gemm.cpp names it
GemmBlockFunction gemm_block_function() { return gemm_block; }

}  // namespace fastmmoe::FASTMMOE_ISA
