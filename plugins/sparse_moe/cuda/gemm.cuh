// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts for more than a few tokens. A block computes one tile
// (common/cuda/tile_products.cuh): rows of sorted slots, those of one expert, by rows of its weights.
#pragma once

#include "common/cuda/tile_products.cuh"
#include "sparse_moe/cuda/weights.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kGateUpColumns = kTileWeights / 2;  // of activated; each needs a gate and an up row

/// Calls visit(j, half, row, slot) for the rows of a lane's sums that are slots: Sums::at(..., j, half).
template <typename Tile, typename Visit>
__device__ void for_each_row(const Workspace& work, const Visit& visit) {
  const int first = static_cast<int>(blockIdx.x) * Tile::kRows + warp_origin<Tile>().x + lane() % 4 * 2;
#pragma unroll
  for (int j = 0; j < Tile::kRowOps; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + j * kOpTokens + half;
      const int slot = work.row_slot[row];
      if (slot >= 0) visit(j, half, row, slot);
    }
  }
}

/// activated = activation(hidden_states gate^T, hidden_states up^T).
/// Grid: a tile of kRows rows, pieces of kGateUpColumns columns. Block: the warps of the tile.
template <typename Format, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gate_up_tiles(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  using Layout = TileColumns<2>;
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int k = static_cast<int>(params.attributes.top_k);
  const int first_column = static_cast<int>(blockIdx.y) * kGateUpColumns;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const InputRows<Tile> input(params.hidden_states, H * kElementBytes,
                              [&](int i) { return row_slot[i] < 0 ? -1 : row_slot[i] / k; });
  const auto row_at = [&](int i) {
    const int column = first_column + Layout::column_of(i);
    return column < I ? column + Layout::matrix_of(i) * I : -1;
  };
  Sums<Tile> sums{};
  multiply_tiles<Format, Tile>(input, gate_up_of<Format>(params, expert), row_at, sums);
  const int64_t bias = int64_t{expert} * 2 * I;
  const int lane_column = first_column + warp_origin<Tile>().y / 2 + lane() / 4 * 2;
  for_each_row<Tile>(work, [&](int j, int half, int row, int) {
#pragma unroll
    for (int first = 0; first < Tile::kWarpWeights / 2; first += kOpWeights) {
      const int column = lane_column + first;
      if (column >= I) continue;
      float values[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float gate = sums.at(Layout::row_of(first + c, 0), j, half) +
                           bias_at<T>(params.gate_up_bias, bias + column + c);
        const float up = sums.at(Layout::row_of(first + c, 1), j, half) +
                         bias_at<T>(params.gate_up_bias, bias + I + column + c);
        values[c] = activate(params.attributes, gate, up);
      }
      store_pair(static_cast<T*>(work.activated) + int64_t{row} * I + column, values[0], values[1]);
    }
  });
}

/// weighted = weight (activated down^T + bias), of every slot.
/// Grid: a tile of kRows rows, pieces of kTileWeights columns. Block: the warps of the tile.
template <typename Format, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    down_tiles(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  using Layout = TileColumns<1>;
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int first_column = static_cast<int>(blockIdx.y) * kTileWeights;
  const T* activated = static_cast<const T*>(work.activated) + int64_t{blockIdx.x} * Tile::kRows * I;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const InputRows<Tile> input(activated, I * kElementBytes, [&](int i) { return row_slot[i] < 0 ? -1 : i; });
  const auto row_at = [&](int i) {
    const int column = first_column + Layout::column_of(i);
    return column < H ? column : -1;
  };
  Sums<Tile> sums{};
  multiply_tiles<Format, Tile>(input, down_of<Format>(params, expert), row_at, sums);
  const int64_t bias = int64_t{expert} * H;
  const int lane_column = first_column + warp_origin<Tile>().y + lane() / 4 * 2;
  for_each_row<Tile>(work, [&](int j, int half, int row, int slot) {
    const float weight = work.weights[slot];
#pragma unroll
    for (int first = 0; first < Tile::kWarpWeights; first += kOpWeights) {
      const int column = lane_column + first;
      if (column >= H) continue;
      const float even = sums.at(Layout::row_of(first, 0), j, half);
      const float odd = sums.at(Layout::row_of(first + 1, 0), j, half);
      store_pair(static_cast<T*>(work.weighted) + int64_t{row} * H + column,
                 weight * (even + bias_at<T>(params.down_bias, bias + column)),
                 weight * (odd + bias_at<T>(params.down_bias, bias + column + 1)));
    }
  });
}

}  // namespace fastmmoe::sparse_moe
