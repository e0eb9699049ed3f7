// SPDX-License-Identifier: Apache-2.0
// FmmLinear for more than a few rows (common/cuda/tile_products.cuh).
#pragma once

#include "common/cuda/tile_products.cuh"
#include "linear/cuda/device.cuh"

namespace fastmmoe::linear {

/// y. Grid: a tile of kRows rows, pieces of kTileWeights columns. Block: the warps of the tile.
template <typename Format, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    linear_tiles(const LinearKernelParams params) {
  using T = typename Format::Type;
  using Layout = TileColumns<1>;
  const int K = static_cast<int>(params.K), N = static_cast<int>(params.N), rows = static_cast<int>(params.T);
  const int first_row = static_cast<int>(blockIdx.x) * Tile::kRows;
  const int first_column = static_cast<int>(blockIdx.y) * kTileWeights;
  const InputRows<Tile> input(params.x, K * kElementBytes,
                              [&](int i) { return first_row + i < rows ? first_row + i : -1; });
  const auto row_at = [&](int i) {
    const int column = first_column + Layout::column_of(i);
    return column < N ? column : -1;
  };
  Sums<Tile> sums{};
  multiply_tiles<Format, Tile>(input, weights_of<Format>(params), row_at, sums);
  const int2 origin = warp_origin<Tile>();
  const int lane_row = first_row + origin.x + lane() % 4 * 2,
            lane_column = first_column + origin.y + lane() / 4 * 2;
#pragma unroll
  for (int j = 0; j < Tile::kRowOps; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_row + j * kOpTokens + half;
      if (row >= rows) continue;
#pragma unroll
      for (int first = 0; first < Tile::kWarpWeights; first += kOpWeights) {
        const int column = lane_column + first;
        if (column >= N) continue;
        const float even = sums.at(Layout::row_of(first, 0), j, half);
        const float odd = sums.at(Layout::row_of(first + 1, 0), j, half);
        store_pair(static_cast<T*>(params.y) + int64_t{row} * N + column,
                   finish<T>(params, row, column, even), finish<T>(params, row, column + 1, odd));
      }
    }
  }
}

}  // namespace fastmmoe::linear
