// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts for few tokens (common/cuda/few_rows.cuh): each row of an active
// expert's weights is read once, by one block, for all tokens that use the expert.
#pragma once

#include "common/cuda/few_rows.cuh"
#include "sparse_moe/cuda/weights.cuh"

namespace fastmmoe::sparse_moe {

// Blocks write all their columns without a bound, those of gate_up_few half as many.
static_assert(kProductDepth % kDecodeRows == 0 && kInt4ProductDepth % kDecodeRows == 0,
              "H and I are whole blocks of columns");

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
