// SPDX-License-Identifier: Apache-2.0
// For few tokens, where reading weights is all the time: each row of an active expert's weights is read once,
// by one block, for all tokens that use the expert.
//
// Tensor cores save no reading, but instructions: 16 rows of weights are one operand, up to 8 tokens the
// other, so integers are unpacked once for all tokens, as in the other kernels. Products in lanes would take
// at least as many instructions as unpacking int4 does, for every token, and with them more than memory
// leaves time for.
#pragma once

#include "sparse_moe/cuda/dequantise.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kDecodeRows = 16;  // rows of weights of a block
constexpr int kDecodeThreads = 256;
constexpr int kDecodeBlocks = 2;  // that a multiprocessor has registers for
constexpr int kDecodeWarps = kDecodeThreads / kWarp;
static_assert(kDecodeRows == 16 && kDecodeTokens == 8, "the result of one tensor core operation");
static_assert(kDecodeThreads >= kDecodeRows * kDecodeTokens, "a thread for every sum of a block");
// Blocks write all their columns without a bound, those of gate_up_few half as many.
static_assert(kSparseMoeDepth % kDecodeRows == 0 && kSparseMoeInt4Depth % kDecodeRows == 0,
              "H and I are whole blocks of columns");

/// What a lane needs for a step of a warp: 16 bytes of two rows of weights, and the same columns of the
/// input.
template <typename Format>
struct Step {
  static constexpr int kLaneColumns = 128 / Format::kBits;
  static constexpr int kColumns = 4 * kLaneColumns;  // of the warp: 64 bytes of each row
  static_assert((Format::kBits == 4 ? kSparseMoeInt4Depth : kSparseMoeDepth) % kLaneColumns == 0,
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

/// activated, kDecodeRows / 2 columns for each block. The rows of weights are those of gate, then those of
/// up. Grid: a tile of kDecodeTokens rows, pieces of kDecodeRows / 2 columns. Block: kDecodeWarps warps share
/// the steps of the tile.
template <typename Format>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    gate_up_few(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  constexpr int kColumns = kDecodeRows / 2;
  __shared__ WarpSums shared;
  const int tile = static_cast<int>(blockIdx.x), expert = work.tile_expert[tile];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int first_column = static_cast<int>(blockIdx.y) * kColumns;
  const int32_t* slots = work.row_slot + tile * kDecodeTokens;

  const int token = slots[lane() / 4] / static_cast<int>(params.attributes.top_k);
  const T* input =
      slots[lane() / 4] < 0 ? nullptr : static_cast<const T*>(params.hidden_states) + int64_t{token} * H;
  const Matrix<Format> weights = gate_up_of<Format>(params, expert);
  const int rows[2] = {first_column + lane() / 4, I + first_column + lane() / 4};
  float sums[4] = {};
  for_each_step(
      1, steps_of<Format>(H), [&](Place place) { return load_step(weights, rows, input, place.step); },
      [&](Place, const Step<Format>& step) { multiply_step(step, sums); });
  shared.put(sums);
  __syncthreads();

  const int row = thread() / kColumns, column = thread() % kColumns;
  if (row >= kDecodeTokens || slots[row] < 0) return;
  const int64_t bias = int64_t{expert} * 2 * I + first_column + column;
  const float gate = shared.get(column, row) + bias_at<T>(params.gate_up_bias, bias);
  const float up = shared.get(column + kColumns, row) + bias_at<T>(params.gate_up_bias, bias + I);
  static_cast<T*>(work.activated)[int64_t{tile * kDecodeTokens + row} * I + first_column + column] =
      from_float<T>(activate(params.attributes, gate, up));
}

/// Which tokens use the experts of the tiles.
struct DownShared {
  static constexpr int kMaxTiles = kDecodeTokens * static_cast<int>(kSparseMoeMaxTopK);
  WarpSums sums;
  int experts[kMaxTiles];
  int rows[kMaxTiles][kDecodeTokens];  // of activated, or -1
  float weights[kMaxTiles][kDecodeTokens];

  /// Called by the block; returns the number of tiles.
  __device__ int fill(const Workspace& work, int top_k) {
    static_assert(kDecodeThreads >= kMaxTiles, "a thread for every slot and every tile");
    const int expert = thread() < work.max_tiles ? work.tile_expert[thread()] : -1;
    if (expert >= 0) {
      experts[thread()] = expert;
#pragma unroll
      for (int& row : rows[thread()]) row = -1;
    }
    const int tiles = __syncthreads_count(expert >= 0);
    const int row = thread() < work.slots ? work.slot_row[thread()] : -1;
    if (row >= 0) {
      rows[row / kDecodeTokens][thread() / top_k] = row;
      weights[row / kDecodeTokens][thread() / top_k] = work.weights[thread()];
    }
    __syncthreads();
    return tiles;
  }
};

/// output, kDecodeRows columns of all tokens for each block: a token's experts are added without a place to
/// wait in. Columns of the tensor core operations are tokens, zeros where the expert is not the token's.
/// Which warp adds which products depends on all experts in use, so that every warp has as many.
/// Grid: pieces of kDecodeRows columns. Block: kDecodeWarps warps share the steps of all tiles.
template <typename Format>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    down_few(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  __shared__ DownShared shared;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int first_column = static_cast<int>(blockIdx.x) * kDecodeRows;
  const int rows[2] = {first_column + lane() / 4, first_column + lane() / 4 + 8};
  const int tiles = shared.fill(work, static_cast<int>(params.attributes.top_k));

  float sums[4] = {};
  const auto load = [&](Place place) {
    const int row = shared.rows[place.tile][lane() / 4];
    const T* input = row < 0 ? nullptr : static_cast<const T*>(work.activated) + int64_t{row} * I;
    return load_step(down_of<Format>(params, shared.experts[place.tile]), rows, input, place.step);
  };
  const auto multiply = [&](Place place, const Step<Format>& step) {
    float products[4] = {};
    if (place.step == 0) {
      const int64_t bias = int64_t{shared.experts[place.tile]} * H;
      products[0] = products[1] = bias_at<T>(params.down_bias, bias + rows[0]);
      products[2] = products[3] = bias_at<T>(params.down_bias, bias + rows[1]);
    }
    multiply_step(step, products);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Zeros as input are not enough where weights are not finite.
      const int token = lane() % 4 * 2 + i % 2;
      if (shared.rows[place.tile][token] < 0) continue;
      sums[i] += shared.weights[place.tile][token] * products[i];
    }
  };
  for_each_step(tiles, steps_of<Format>(I), load, multiply);
  shared.sums.put(sums);
  __syncthreads();

  const int token = thread() / kDecodeRows, column = thread() % kDecodeRows;
  if (token >= params.T) return;
  static_cast<T*>(params.output)[int64_t{token} * H + first_column + column] =
      from_float<T>(shared.sums.get(column, token));
}

}  // namespace fastmmoe::sparse_moe
