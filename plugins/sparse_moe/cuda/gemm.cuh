// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts, on tensor cores. A block computes one tile: rows of one expert by rows
// of its weights. The kernels are written here rather than taken from CUTLASS, which has no grouped matrix
// product with two weights and a fused gate for compute capability 8.0, takes several times as long to
// compile, and cannot run on the emulator.
//
// Grids have row tiles as x: blocks that run together then share weights, which are most of the bytes, and
// read them once even where the L2 cache is small.
//
// A tile and the parts of its warps, here MediumTile (2 x 2 warps). Every part is cut into operations of
// kOpWeights rows of weights by kOpTokens rows of slots:
//
//                    kTileWeights = 128 rows of weights
//                 +-----------------+-----------------+
//         kRows   | warp 0          | warp 1          |  kWarpRows
//         rows of +-----------------+-----------------+
//         slots   | warp 2          | warp 3          |
//                 +-----------------+-----------------+
//                   kWarpWeights
//
// Which rows of weights these are, by TileColumns; lane l = 4 g + t holds those marked g of every eight:
//
//         row of the tile   gate_up_tiles             down_tiles
//          0 ..  7          gate, column 2 g          column 2 g
//          8 .. 15          up,   column 2 g          column 2 g + 1
//         16 .. 23          gate, column 2 g + 1      column 16 + 2 g
//         24 .. 31          up,   column 2 g + 1      column 16 + 2 g + 1
//         32 .. 39          gate, column 16 + 2 g     column 32 + 2 g
//         ...
//
// So a lane has gate and up of the same column, and two neighbouring columns, which it stores at once.
#pragma once

#include "sparse_moe/cuda/tile.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kGateUpColumns = kTileWeights / 2;  // of activated; each needs a gate and an up row

/// The columns of the output that the rows of a tile of weights make, as in the picture above. kMatrices:
/// rows of weights that make a column, 2 for gate and up. Columns count from the tile's first one, or from a
/// warp's.
template <int kMatrices>
struct TileColumns {
  /// The column that a row makes, and by which of its matrices.
  __host__ __device__ static constexpr int column_of(int row) {
    return row / (kOpWeights * kMatrices) * kOpWeights + row % 8 * 2 + row / (8 * kMatrices) % 2;
  }
  __host__ __device__ static constexpr int matrix_of(int row) { return row / 8 % kMatrices; }

  /// The inverse: the row of a matrix that makes the column.
  __host__ __device__ static constexpr int row_of(int column, int matrix) {
    const int eight = (column / kOpWeights * 2 + column % 2) * kMatrices + matrix;
    return eight * 8 + column % kOpWeights / 2;
  }

  /// Whether row_of is the inverse, and lane l, which holds row l / 4 of eight, has every other column of
  /// them.
  static constexpr bool is_consistent() {
    for (int row = 0; row < kTileWeights; ++row) {
      if (row_of(column_of(row), matrix_of(row)) != row) return false;
      if (column_of(row) != column_of(row - row % 8) + row % 8 * 2) return false;
    }
    return true;
  }
};
static_assert(TileColumns<1>::is_consistent() && TileColumns<2>::is_consistent());

/// A warp's part of the tile. Lane l holds weights l / 4 and l / 4 + 8, rows 2 (l % 4) and the next, of every
/// operation's result.
template <typename Tile>
struct Sums {
  float values[Tile::kWeightOps][Tile::kRowOps][4];

  /// Of the lane's row of the eight rows of weights from `eight` on, and of row `half` of its two of
  /// operation j.
  __device__ float at(int eight, int j, int half) const {
    return values[eight / kOpWeights][j][eight / 8 % 2 * 2 + half];
  }
};

/// What a block has in shared memory: stages of both operands, then scales.
template <typename Format, typename Tile>
struct TileMemory {
  using Scales = TileScales<Format, Tile::kThreads>;
  static constexpr int kStageBytes = InputRows<Tile>::kBytes + WeightRows<Format, Tile>::kBytes;
  static constexpr int kBytes = Tile::kStages * kStageBytes + Scales::kBytes;
  static_assert(kBytes <= 48 * 1024, "two blocks for a multiprocessor of 100 KB");

  char* memory;

  __device__ char* input(int tile) const { return memory + tile % Tile::kStages * kStageBytes; }
  __device__ char* weights(int tile) const { return input(tile) + InputRows<Tile>::kBytes; }
  __device__ char* scales() const { return memory + Tile::kStages * kStageBytes; }
};

/// The first row and the first of the weights of a warp's part of a tile.
template <typename Tile>
__device__ int2 warp_origin() {
  return make_int2(warp() / Tile::kWarpsAcross * Tile::kWarpRows,
                   warp() % Tile::kWarpsAcross * Tile::kWarpWeights);
}

/// Adds the products of one tile of the operands, integer weights.
template <typename Format, typename Tile>
__device__ void multiply_tile(const TileMemory<Format, Tile>& shared,
                              const TileScales<Format, Tile::kThreads>& scales, int tile, Sums<Tile>& sums) {
  const int2 origin = warp_origin<Tile>();
  Pairs rows[Tile::kRowOps];
#pragma unroll
  for (int j = 0; j < Tile::kRowOps; ++j) {
    load_pairs<Tile>(shared.input(tile), origin.x + j * kOpTokens, rows[j]);
  }
#pragma unroll
  for (int i = 0; i < Tile::kWeightOps; ++i) {
    uint32_t weights[kTileOps][4];
    unpack_weights<Format, Tile>(shared.weights(tile), scales, tile, origin.y + i * kOpWeights, weights);
#pragma unroll
    for (int op = 0; op < kTileOps; ++op) {
#pragma unroll
      for (int j = 0; j < Tile::kRowOps; ++j) {
        multiply<typename Format::Type>(sums.values[i][j], weights[op], rows[j][2 * op], rows[j][2 * op + 1]);
      }
    }
  }
}

/// Weights of T: an operation's operands at a time, which takes fewer registers.
template <typename T, typename Tile>
__device__ void multiply_tile(const TileMemory<FloatWeights<T>, Tile>& shared,
                              const TileScales<FloatWeights<T>, Tile::kThreads>&, int tile,
                              Sums<Tile>& sums) {
  const int2 origin = warp_origin<Tile>();
#pragma unroll
  for (int op = 0; op < kTileOps; ++op) {
    uint32_t rows[Tile::kRowOps / 2][4];
#pragma unroll
    for (int j = 0; j < Tile::kRowOps / 2; ++j) {
      load_rows<Tile>(shared.input(tile), origin.x + j * 2 * kOpTokens, op, rows[j]);
    }
#pragma unroll
    for (int i = 0; i < Tile::kWeightOps; ++i) {
      uint32_t weights[4];
      load_weights<FloatWeights<T>, Tile>(shared.weights(tile), origin.y + i * kOpWeights, op, weights);
#pragma unroll
      for (int j = 0; j < Tile::kRowOps; ++j) {
        multiply<T>(sums.values[i][j], weights, rows[j / 2][j % 2 * 2], rows[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

/// sums = weights input^T. row_at(i): the row of the weights that is row i of the tile, or -1 for zeros.
template <typename Format, typename Tile, typename RowAt>
__device__ void multiply_tiles(const InputRows<Tile>& input, const Matrix<Format>& weights,
                               const RowAt& row_at, Sums<Tile>& sums) {
  using Memory = TileMemory<Format, Tile>;
  DYNAMIC_SHARED(char, memory);
  const Memory shared{memory};
  const WeightRows<Format, Tile> weight_rows(weights.row(0), weights.row_bytes(), row_at);
  const int tiles = (weights.depth() + kTileDepth - 1) / kTileDepth;
  const auto start = [&](int tile) {
    if (tile < tiles) {
      input.copy(shared.input(tile), tile);
      weight_rows.copy(shared.weights(tile), tile);
    }
    copy_async_commit();
  };
  for (int tile = 0; tile < Tile::kStages - 1; ++tile) start(tile);
  typename Memory::Scales scales(weights, shared.scales(), row_at);
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<Tile::kStages - 2>();
    // The tile and its scales are there, and no warp reads the tile before, whose place the next copy takes.
    __syncthreads();
    scales.advance(tile);
    start(tile + Tile::kStages - 1);
    multiply_tile(shared, scales, tile, sums);
  }
}

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
