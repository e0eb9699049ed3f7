// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts, on tensor cores. A block computes one tile: rows of one expert by rows
// of its weights. The kernels are written here rather than taken from CUTLASS, which has no grouped matrix
// product with two weights and a fused gate for compute capability 8.0, takes several times as long to
// compile, and cannot run on the emulator.
//
// Grids have row tiles as x: blocks that run together then share weights, which are most of the bytes, and
// read them once even where the L2 cache is small.
#pragma once

#include "sparse_moe/device.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kTileDepth = 32;
constexpr int kTileColumns = 128;                           // rows of the weights in a tile
constexpr int kGateUpColumns = kTileColumns / 2;            // of activated; each needs a gate and an up row
constexpr int kVectorsPerRow = kTileDepth / kVector;        // of a row in shared memory
constexpr int kOpRows = 16, kOpColumns = 8, kOpDepth = 16;  // of a tensor core operation

/// kRows by kTileColumns, cut among kWarpsDown x kWarpsAcross warps; kStages tiles of the operands are in
/// shared memory or on their way to it.
template <int kRows_, int kWarpsDown_, int kWarpsAcross_, int kStages_>
struct Tile {
  static constexpr int kRows = kRows_, kStages = kStages_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kThreads = kWarpsDown_ * kWarpsAcross_ * kWarp;
  static constexpr int kWarpRows = kRows / kWarpsDown_, kWarpColumns = kTileColumns / kWarpsAcross_;
  static constexpr int kRowOps = kWarpRows / kOpRows, kColumnOps = kWarpColumns / kOpColumns;
  static constexpr int kStageElements = (kRows + kTileColumns) * kTileDepth;
  static constexpr int kSharedBytes = kStages * kStageElements * 2;
  static_assert(kWarpRows % kOpRows == 0 && kWarpColumns % (2 * kOpColumns) == 0);
  static_assert(kSharedBytes <= 48 * 1024, "two blocks for a multiprocessor of 100 KB");
};

/// For few rows an expert, for some, and for many.
using SmallTile = Tile<16, 1, 4, 4>;
using MediumTile = Tile<64, 2, 2, 4>;
using LargeTile = Tile<128, 4, 2, 3>;

/// Where the 16 bytes `vector` of a row are in a tile in shared memory. Eight neighbouring rows have the same
/// vector in different banks, as load_matrix wants it.
__device__ inline int tile_offset(int row, int vector) {
  return row * kTileDepth + (vector ^ (row / 2 % kVectorsPerRow)) * kVector;
}

/// Rows of a matrix of T that a block copies to shared memory, a tile of kTileDepth columns at a time. Other
/// forms of weights need another class with copy() and load_columns().
template <typename T, int kRows, int kThreads>
class TileRows {
 public:
  /// row_at(i): the i-th row, or null for zeros. any: a row that is only named, never read.
  template <typename RowAt>
  __device__ TileRows(const T* any, int depth, const RowAt& row_at) : any_(any), depth_(depth) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) rows_[i] = is_mine(i) ? row_at(row(i)) : nullptr;
  }

  /// Starts to copy columns `first` on; zeros beyond the last.
  __device__ void copy(T* shared, int first) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (!is_mine(i)) continue;
      const int vector = index(i) % kVectorsPerRow, column = first + vector * kVector;
      const bool is_valid = rows_[i] != nullptr && column < depth_;
      copy_async_16(shared + tile_offset(row(i), vector), is_valid ? rows_[i] + column : any_, is_valid);
    }
  }

  /// Called by a warp: the left operand of kOpRows rows, in step `step` of the tile.
  __device__ static void load_rows(const T* shared, int first, int step, uint32_t (&fragment)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    load_matrix(fragment, shared + tile_offset(first + lane % 16, step * 2 + lane / 16));
  }

  /// Called by a warp: the right operand of rows `first` to first + 16, two registers for each 8 of them.
  __device__ static void load_columns(const T* shared, int first, int step, uint32_t (&fragment)[4]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    load_matrix(fragment, shared + tile_offset(first + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
  }

 private:
  static constexpr int kVectors = kRows * kVectorsPerRow;
  static constexpr int kCopies = (kVectors + kThreads - 1) / kThreads;

  __device__ static int index(int i) { return static_cast<int>(threadIdx.x) + i * kThreads; }
  __device__ static int row(int i) { return index(i) / kVectorsPerRow; }
  __device__ static bool is_mine(int i) { return kVectors % kThreads == 0 || index(i) < kVectors; }

  const T* any_;
  const T* rows_[kCopies];
  int depth_;
};

/// A warp's part of the tile. Lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of every
/// operation's result.
template <typename Tile>
struct Sums {
  float values[Tile::kRowOps][Tile::kColumnOps][4];
};

/// Adds the products of one tile of the operands in shared memory.
template <typename T, typename Tile, typename Weights>
__device__ void multiply_stage(const T* left, const T* right, Sums<Tile>& sums) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const int first_column = warp % Tile::kWarpsAcross * Tile::kWarpColumns;
#pragma unroll
  for (int step = 0; step < kTileDepth / kOpDepth; ++step) {
    uint32_t a[Tile::kRowOps][4];
#pragma unroll
    for (int i = 0; i < Tile::kRowOps; ++i) {
      TileRows<T, Tile::kRows, Tile::kThreads>::load_rows(left, first_row + i * kOpRows, step, a[i]);
    }
#pragma unroll
    for (int j = 0; j < Tile::kColumnOps; j += 2) {
      uint32_t b[4];
      Weights::load_columns(right, first_column + j * kOpColumns, step, b);
#pragma unroll
      for (int i = 0; i < Tile::kRowOps; ++i) {
        Element<T>::multiply(sums.values[i][j], a[i], b[0], b[1]);
        Element<T>::multiply(sums.values[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

/// sums = left right^T over `depth` columns.
template <typename T, typename Tile, typename Weights>
__device__ void multiply_tiles(const TileRows<T, Tile::kRows, Tile::kThreads>& left, const Weights& right,
                               int depth, Sums<Tile>& sums) {
  DYNAMIC_SHARED(T, shared);
  const int tiles = (depth + kTileDepth - 1) / kTileDepth;
  const auto stage = [&](int tile) { return shared + tile % Tile::kStages * Tile::kStageElements; };
  const auto start = [&](int tile) {
    if (tile < tiles) {
      left.copy(stage(tile), tile * kTileDepth);
      right.copy(stage(tile) + Tile::kRows * kTileDepth, tile * kTileDepth);
    }
    copy_async_commit();
  };
  for (int tile = 0; tile < Tile::kStages - 1; ++tile) start(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the tile is there, and no warp reads the one before, whose place the next copy takes
    start(tile + Tile::kStages - 1);
    multiply_stage<T, Tile, Weights>(stage(tile), stage(tile) + Tile::kRows * kTileDepth, sums);
  }
  copy_async_wait_all();
}

/// Calls visit(i, half, row) for the rows of a lane's sums that are slots: values[i][...][2 half] and the
/// next.
template <typename Tile, typename Visit>
__device__ void for_each_row(const Workspace& work, const Visit& visit) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(blockIdx.x) * Tile::kRows + warp / Tile::kWarpsAcross * Tile::kWarpRows;
#pragma unroll
  for (int i = 0; i < Tile::kRowOps; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + i * kOpRows + half * 8 + lane / 4;
      const int slot = work.row_slot[row];
      if (slot >= 0) visit(i, half, row, slot);
    }
  }
}

/// The first of the lane's two columns in operation j of the warp's part of a tile.
template <typename Tile>
__device__ int column_of(int j) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  return warp % Tile::kWarpsAcross * Tile::kWarpColumns + j * kOpColumns + lane % 4 * 2;
}

/// activated = activation(hidden_states gate^T, hidden_states up^T). The tile holds 8 gate rows, then the 8
/// up rows of the same columns, and so on, so a lane has both values of a column.
template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    gate_up_tiles(const SparseMoeKernelParams params, const Workspace work) {
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int k = static_cast<int>(params.attributes.top_k);
  const int first_column = static_cast<int>(blockIdx.y) * kGateUpColumns;
  const T* hidden_states = static_cast<const T*>(params.hidden_states);
  const T* weights = static_cast<const T*>(params.gate_up) + int64_t{expert} * 2 * I * H;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const TileRows<T, Tile::kRows, Tile::kThreads> left(hidden_states, H, [&](int i) {
    return row_slot[i] < 0 ? nullptr : hidden_states + int64_t{row_slot[i] / k} * H;
  });
  using Weights = TileRows<T, kTileColumns, Tile::kThreads>;
  const Weights right(weights, H, [&](int i) {
    const int column = first_column + i / 16 * 8 + i % 8;
    const bool is_up = i / 8 % 2 != 0;
    return column < I ? weights + (int64_t{column} + (is_up ? I : 0)) * H : nullptr;
  });
  Sums<Tile> sums{};
  multiply_tiles<T, Tile>(left, right, H, sums);
  const int64_t bias = int64_t{expert} * 2 * I;
  for_each_row<Tile>(work, [&](int i, int half, int row, int) {
#pragma unroll
    for (int j = 0; j < Tile::kColumnOps; j += 2) {
      const int in_tile = column_of<Tile>(j);
      const int column = first_column + in_tile / 16 * 8 + in_tile % 8;
      if (column >= I) continue;
      float values[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float gate =
            sums.values[i][j][2 * half + c] + bias_at<T>(params.gate_up_bias, bias + column + c);
        const float up =
            sums.values[i][j + 1][2 * half + c] + bias_at<T>(params.gate_up_bias, bias + I + column + c);
        values[c] = activate(params.attributes, gate, up);
      }
      store_pair(static_cast<T*>(work.activated) + int64_t{row} * I + column, values[0], values[1]);
    }
  });
}

/// weighted = weight (activated down^T + bias), of every slot.
template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    down_tiles(const SparseMoeKernelParams params, const Workspace work) {
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int first_column = static_cast<int>(blockIdx.y) * kTileColumns;
  const T* activated = static_cast<const T*>(work.activated) + int64_t{blockIdx.x} * Tile::kRows * I;
  const T* weights = static_cast<const T*>(params.down) + int64_t{expert} * H * I;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const TileRows<T, Tile::kRows, Tile::kThreads> left(
      activated, I, [&](int i) { return row_slot[i] < 0 ? nullptr : activated + int64_t{i} * I; });
  using Weights = TileRows<T, kTileColumns, Tile::kThreads>;
  const Weights right(weights, I, [&](int i) {
    return first_column + i < H ? weights + int64_t{first_column + i} * I : nullptr;
  });
  Sums<Tile> sums{};
  multiply_tiles<T, Tile>(left, right, I, sums);
  const int64_t bias = int64_t{expert} * H;
  for_each_row<Tile>(work, [&](int i, int half, int row, int slot) {
    const float weight = work.weights[slot];
#pragma unroll
    for (int j = 0; j < Tile::kColumnOps; ++j) {
      const int column = first_column + column_of<Tile>(j);
      if (column >= H) continue;
      const float* values = sums.values[i][j] + 2 * half;
      store_pair(static_cast<T*>(work.weighted) + int64_t{row} * H + column,
                 weight * (values[0] + bias_at<T>(params.down_bias, bias + column)),
                 weight * (values[1] + bias_at<T>(params.down_bias, bias + column + 1)));
    }
  });
}

}  // namespace fastmmoe::sparse_moe
