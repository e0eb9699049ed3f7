// SPDX-License-Identifier: Apache-2.0
// Products of few rows with weights, where reading weights is all the time: each row of weights is read once,
// by one block, for all rows of the input.
//
// Tensor cores save no reading, but instructions: 16 rows of weights are one operand, up to 8 tokens the
// other, so integers are unpacked once for all tokens, as in the other kernels. Products in lanes would take
// at least as many instructions as unpacking int4 does, for every token, and with them more than memory
// leaves time for.
#pragma once

#include "common/cuda/dequantise.cuh"
#include "common/cuda/elements.cuh"
#include "common/cuda/products.h"

namespace fastmmoe {

constexpr int kDecodeRows = 16;  // rows of weights of a block
constexpr int kDecodeThreads = 256;
constexpr int kDecodeBlocks = 2;  // that a multiprocessor has registers for
constexpr int kDecodeWarps = kDecodeThreads / kWarp;
static_assert(kDecodeRows == 16 && kDecodeTokens == 8, "the result of one tensor core operation");
static_assert(kDecodeThreads >= kDecodeRows * kDecodeTokens, "a thread for every sum of a block");

/// What a lane needs for a step of a warp: 16 bytes of two rows of weights, and the same columns of the
/// input.
template <typename Format>
struct Step {
  static constexpr int kLaneColumns = 128 / Format::kBits;
  static constexpr int kColumns = 4 * kLaneColumns;  // of the warp: 64 bytes of each row
  static_assert((Format::kBits == 4 ? kInt4ProductDepth : kProductDepth) % kLaneColumns == 0,
                "rows end between two lanes: a lane that begins in a row loads all its columns");
  uint4 weights[2];
  typename Format::Group groups[2];
  uint4 input[kLaneColumns / kVector];
};

template <typename Format>
__device__ int steps_of(int depth) {
  return (depth + Step<Format>::kColumns - 1) / Step<Format>::kColumns;
}

/// Lane l gets weights of rows[0] and rows[1], and of the input, which may be null for zeros.
template <typename Format>
__device__ Step<Format> load_step(const Matrix<Format>& matrix, const int (&rows)[2],
                                  const typename Format::Type* input, int index) {
  using S = Step<Format>;
  const int column = index * S::kColumns + lane() % 4 * S::kLaneColumns;
  S step{};
  if (column >= matrix.depth()) return step;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const char* weights = matrix.row(rows[i]) + column * Format::kBits / 8;
    step.weights[i] = __ldcs(reinterpret_cast<const uint4*>(weights));
    step.groups[i] = matrix.group(rows[i], column);
  }
  if (input == nullptr) return step;
#pragma unroll
  for (int i = 0; i < S::kLaneColumns / kVector; ++i) {
    step.input[i] = reinterpret_cast<const uint4*>(input + column)[i];
  }
  return step;
}

/// Called by a warp: adds the products of a step. Lane l = 4 g + t has loaded weights of the rows g and g + 8
/// and the input of token g; of the products it has rows g and g + 8, tokens 2 t and 2 t + 1.
template <typename Format>
__device__ void multiply_step(const Step<Format>& step, float (&sums)[4]) {
  using Columns = typename Format::Columns;
  const typename Format::Scale scales[2] = {Format::scale_of(step.groups[0]),
                                            Format::scale_of(step.groups[1])};
#pragma unroll
  for (int i = 0; i < Step<Format>::kLaneColumns / kVector; ++i) {
    Pairs rows[2], tokens;
    memcpy(tokens, &step.input[i], sizeof tokens);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Columns columns;
      memcpy(&columns, reinterpret_cast<const char*>(&step.weights[r]) + i * sizeof columns, sizeof columns);
      Format::unpack(columns, scales[r], rows[r]);
    }
#pragma unroll
    for (int op = 0; op < 2; ++op) {
      const uint32_t a[4] = {rows[0][2 * op], rows[1][2 * op], rows[0][2 * op + 1], rows[1][2 * op + 1]};
      multiply<typename Format::Type>(sums, a, tokens[2 * op], tokens[2 * op + 1]);
    }
  }
}

/// A step of a tile.
struct Place {
  int tile, step;
};

/// Called by a warp: does its share of the steps of all tiles, the next one being loaded meanwhile.
template <typename Load, typename Multiply>
__device__ void for_each_step(int tiles, int steps, const Load& load, const Multiply& multiply) {
  const auto settle = [steps](Place place) {
    while (place.step >= steps) place = {place.tile + 1, place.step - steps};
    return place;
  };
  Place next = settle({0, warp()});
  if (next.tile >= tiles) return;
  auto loaded = load(next);
  while (next.tile < tiles) {
    const Place place = next;
    const auto step = loaded;
    next = settle({place.tile, place.step + kDecodeWarps});
    if (next.tile < tiles) loaded = load(next);
    multiply(place, step);
  }
}

/// The sums of every warp of a block, to be added in the order of the warps.
struct WarpSums {
  float values[kDecodeWarps][kDecodeRows][kDecodeTokens];

  /// Called by a warp.
  __device__ void put(const float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[warp()][lane() / 4 + i / 2 * 8][lane() % 4 * 2 + i % 2] = sums[i];
  }

  __device__ float get(int row, int token) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) sum += values[w][row][token];
    return sum;
  }
};

}  // namespace fastmmoe
