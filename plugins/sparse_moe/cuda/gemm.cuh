// SPDX-License-Identifier: Apache-2.0
// The two projections of the experts, on tensor cores. A block computes one tile: rows of one expert by rows
// of its weights. The kernels are written here rather than taken from CUTLASS, which has no grouped matrix
// product with two weights and a fused gate for compute capability 8.0, takes several times as long to
// compile, and cannot run on the emulator.
//
// Grids have row tiles as x: blocks that run together then share weights, which are most of the bytes, and
// read them once even where the L2 cache is small.
#pragma once

#include "sparse_moe/cuda/tile.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kGateUpColumns = kTileWeights / 2;  // of activated; each needs a gate and an up row

/// A warp's part of the tile. Lane l holds weights l / 4 and l / 4 + 8, rows 2 (l % 4) and the next, of every
/// operation's result.
template <typename Tile>
struct Sums {
  float values[Tile::kWeightOps][Tile::kRowOps][4];
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

/// Calls visit(j, half, row, slot) for the rows of a lane's sums that are slots: values[...][j][half] and
/// [half + 2].
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

/// activated = activation(hidden_states gate^T, hidden_states up^T). Of the weights in a tile, each 16 are 8
/// gate rows and their up rows, for even columns of activated, then for odd ones: a lane has both values of a
/// column, and two neighbouring columns.
template <typename Format, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gate_up_tiles(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int k = static_cast<int>(params.attributes.top_k);
  const int first_column = static_cast<int>(blockIdx.y) * kGateUpColumns;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const InputRows<Tile> input(params.hidden_states, H * kElementBytes,
                              [&](int i) { return row_slot[i] < 0 ? -1 : row_slot[i] / k; });
  const auto row_at = [&](int i) {
    const int column = first_column + i / 32 * 16 + i % 8 * 2 + i / 16 % 2;
    const bool is_up = i / 8 % 2 != 0;
    return column < I ? column + (is_up ? I : 0) : -1;
  };
  Sums<Tile> sums{};
  multiply_tiles<Format, Tile>(input, gate_up_of<Format>(params, expert), row_at, sums);
  const int64_t bias = int64_t{expert} * 2 * I;
  const int lane_column = first_column + warp_origin<Tile>().y / 2 + lane() / 4 * 2;
  for_each_row<Tile>(work, [&](int j, int half, int row, int) {
#pragma unroll
    for (int i = 0; i < Tile::kWeightOps; i += 2) {
      const int column = lane_column + i * kOpWeights / 2;
      if (column >= I) continue;
      float values[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float gate = sums.values[i + c][j][half] + bias_at<T>(params.gate_up_bias, bias + column + c);
        const float up =
            sums.values[i + c][j][half + 2] + bias_at<T>(params.gate_up_bias, bias + I + column + c);
        values[c] = activate(params.attributes, gate, up);
      }
      store_pair(static_cast<T*>(work.activated) + int64_t{row} * I + column, values[0], values[1]);
    }
  });
}

/// weighted = weight (activated down^T + bias), of every slot. Of the weights in a tile, each 16 are 8 even
/// rows of down, then 8 odd ones: a lane has two neighbouring columns.
template <typename Format, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    down_tiles(const SparseMoeKernelParams params, const Workspace work) {
  using T = typename Format::Type;
  const int expert = work.tile_expert[blockIdx.x];
  if (expert < 0) return;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  const int first_column = static_cast<int>(blockIdx.y) * kTileWeights;
  const T* activated = static_cast<const T*>(work.activated) + int64_t{blockIdx.x} * Tile::kRows * I;
  const int32_t* row_slot = work.row_slot + int64_t{blockIdx.x} * Tile::kRows;
  const InputRows<Tile> input(activated, I * kElementBytes, [&](int i) { return row_slot[i] < 0 ? -1 : i; });
  const auto row_at = [&](int i) {
    const int column = first_column + i / 16 * 16 + i % 8 * 2 + i / 8 % 2;
    return column < H ? column : -1;
  };
  Sums<Tile> sums{};
  multiply_tiles<Format, Tile>(input, down_of<Format>(params, expert), row_at, sums);
  const int64_t bias = int64_t{expert} * H;
  const int lane_column = first_column + warp_origin<Tile>().y + lane() / 4 * 2;
  for_each_row<Tile>(work, [&](int j, int half, int row, int slot) {
    const float weight = work.weights[slot];
#pragma unroll
    for (int i = 0; i < Tile::kWeightOps; ++i) {
      const int column = lane_column + i * kOpWeights;
      if (column >= H) continue;
      const float* values = sums.values[i][j] + half;
      store_pair(static_cast<T*>(work.weighted) + int64_t{row} * H + column,
                 weight * (values[0] + bias_at<T>(params.down_bias, bias + column)),
                 weight * (values[2] + bias_at<T>(params.down_bias, bias + column + 1)));
    }
  });
}

}  // namespace fastmmoe::sparse_moe
