// SPDX-License-Identifier: Apache-2.0
// Products of many rows with weights, on tensor cores. A block computes one tile: rows of the input by rows
// of one matrix of weights. The kernels are written here rather than taken from CUTLASS, which has no grouped
// matrix product with two weights and a fused gate for compute capability 8.0, takes several times as long to
// compile, and cannot run on the emulator.
//
// Grids have row tiles as x: blocks that run together then share weights, which are most of the bytes, and
// read them once even where the L2 cache is small.
//
// A tile and the parts of its warps, here MediumTile (2 x 2 warps). Every part is cut into operations of
// kOpWeights rows of weights by kOpTokens rows of the input:
//
//                    kTileWeights = 128 rows of weights
//                 +-----------------+-----------------+
//         kRows   | warp 0          | warp 1          |  kWarpRows
//         rows of +-----------------+-----------------+
//         the     | warp 2          | warp 3          |
//         input   +-----------------+-----------------+
//                   kWarpWeights
//
// Which rows of weights these are, by TileColumns; lane l = 4 g + t holds those marked g of every eight:
//
//         row of the tile   two matrices, as gate and up   one matrix
//          0 ..  7          gate, column 2 g               column 2 g
//          8 .. 15          up,   column 2 g               column 2 g + 1
//         16 .. 23          gate, column 2 g + 1           column 16 + 2 g
//         24 .. 31          up,   column 2 g + 1           column 16 + 2 g + 1
//         32 .. 39          gate, column 16 + 2 g          column 32 + 2 g
//         ...
//
// So a lane has gate and up of the same column, and two neighbouring columns, which it stores at once.
#pragma once

#include "common/cuda/tile.cuh"

namespace fastmmoe {

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

}  // namespace fastmmoe
