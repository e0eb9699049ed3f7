// SPDX-License-Identifier: Apache-2.0
// Tiles of the operands in shared memory: how they get there, and how the warps read them.
//
// A tile is kTileDepth columns deep, two tensor core operations. Weights are the left operand, rows of the
// input the right one. Integer weights stay packed in shared memory: a lane unpacks 8 neighbouring columns of
// a row, its share of both operations, and takes the same columns of the other operand. That way around one
// load of 16 bytes is the right operand as it is, while unpacking, which goes through registers in any case,
// puts the left one together from two rows. Reading is free of bank conflicts for every format.
#pragma once

#include "common/cuda/dequantise.cuh"
#include "common/cuda/elements.cuh"
#include "common/cuda/products.h"
#include "common/cuda/ptx.cuh"

namespace fastmmoe {

constexpr int kTileDepth = 32;
constexpr int kTileWeights = 128;                            // rows of the weights in a tile
constexpr int kOpWeights = 16, kOpTokens = 8, kTileOps = 2;  // of a tensor core operation; operations deep
constexpr int kPiece = 16;                                   // bytes that a thread copies at a time
static_assert(kProductDepth % kPiece == 0 && kInt4ProductDepth / 2 % kPiece == 0,
              "rows of every format are whole pieces");

/// kRows of the input by kTileWeights, cut among kWarpsDown x kWarpsAcross warps; kStages tiles of the
/// operands are in shared memory or on their way to it. A multiprocessor has registers for kBlocks blocks.
template <int kRows_, int kWarpsDown_, int kWarpsAcross_, int kStages_, int kBlocks_>
struct Tile {
  static constexpr int kRows = kRows_, kStages = kStages_, kBlocks = kBlocks_, kWarpsAcross = kWarpsAcross_;
  static constexpr int kThreads = kWarpsDown_ * kWarpsAcross_ * kWarp;
  static constexpr int kWarpRows = kRows / kWarpsDown_, kWarpWeights = kTileWeights / kWarpsAcross_;
  static constexpr int kRowOps = kWarpRows / kOpTokens, kWeightOps = kWarpWeights / kOpWeights;
  static_assert(kWarpRows % (2 * kOpTokens) == 0 && kWarpWeights % (2 * kOpWeights) == 0);
};

using SmallTile = Tile<kSmallTileRows, 1, 4, 4, 4>;
using MediumTile = Tile<kMediumTileRows, 2, 2, 4, 3>;
using LargeTile = Tile<kLargeTileRows, 4, 2, 3, 2>;

/// Rows of a matrix that a block copies to shared memory, kRowBytes of each at a time.
template <int kRows, int kRowBytes, int kThreads>
class TileRows {
 public:
  static constexpr int kBytes = kRows * kRowBytes;

  /// row_at(i): which row of the matrix at `first` is the i-th, or -1 for zeros. row_bytes: of a whole row.
  template <typename RowAt>
  __device__ TileRows(const void* first, int row_bytes, const RowAt& row_at)
      : matrix_(static_cast<const char*>(first)), row_bytes_(row_bytes) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) rows_[i] = is_mine(i) ? row_at(tile_row(i)) : -1;
  }

  /// Starts to copy the part `tile` of the rows; zeros beyond their end.
  __device__ void copy(char* shared, int tile) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (!is_mine(i)) continue;
      const int piece = index(i) % kPieces, first = tile * kRowBytes + piece * kPiece;
      const bool is_valid = rows_[i] >= 0 && first < row_bytes_;
      const char* source = matrix_ + (is_valid ? int64_t{rows_[i]} * row_bytes_ + first : 0);
      copy_async_16(shared + offset(tile_row(i), piece), source, is_valid);
    }
  }

  /// Where a piece of a row is in shared memory. Of rows of four pieces, eight neighbouring ones have the
  /// same piece in different banks, as load_matrix wants it.
  __device__ static int offset(int row, int piece) {
    return row * kRowBytes + (kPieces == 4 ? piece ^ (row / 2 % kPieces) : piece) * kPiece;
  }

 private:
  static constexpr int kPieces = kRowBytes / kPiece;
  static constexpr int kCopies = (kRows * kPieces + kThreads - 1) / kThreads;

  __device__ static int index(int i) { return thread() + i * kThreads; }
  __device__ static int tile_row(int i) { return index(i) / kPieces; }
  __device__ static bool is_mine(int i) { return kRows * kPieces % kThreads == 0 || tile_row(i) < kRows; }

  const char* matrix_;
  int row_bytes_;
  int rows_[kCopies];
};

/// Rows of T, those of the input.
template <typename Tile>
using InputRows = TileRows<Tile::kRows, kTileDepth * kElementBytes, Tile::kThreads>;

template <typename Format, typename Tile>
using WeightRows = TileRows<kTileWeights, kTileDepth * Format::kBits / 8, Tile::kThreads>;

/// The scales of the rows of weights in a tile, in shared memory. A thread fetches those of one row a tile
/// ahead of when it publishes them, and publishes them a tile ahead of their use; two groups have room.
template <typename Format, int kThreads>
class TileScales {
 public:
  using Scale = typename Format::Scale;
  static constexpr int kBytes = 2 * kTileWeights * static_cast<int>(sizeof(Scale));

  /// row_at(i): the i-th row, or -1 for scales of 0.
  template <typename RowAt>
  __device__ TileScales(const Matrix<Format>& matrix, char* shared, const RowAt& row_at)
      : matrix_(matrix), shared_(reinterpret_cast<Scale*>(shared)), row_(row_at(thread())) {
    fetch(0);
    publish(0);
    fetch(1);
  }

  /// Called by the block between its barrier and its work on a tile.
  __device__ void advance(int tile) {
    publish(tile + 1);
    fetch(tile + 2);
  }

  __device__ const Scale& at(int tile, int row) const { return slot(tile)[row]; }

 private:
  static_assert(kThreads == kTileWeights, "a thread for every row");

  __device__ bool begins_group(int tile) const {
    return tile * kTileDepth < matrix_.depth() && matrix_.begins_group(tile * kTileDepth);
  }
  __device__ Scale* slot(int tile) const {
    return shared_ + matrix_.group_of(tile * kTileDepth) % 2 * kTileWeights;
  }
  __device__ void fetch(int tile) {
    if (row_ >= 0 && begins_group(tile)) group_ = matrix_.group(row_, tile * kTileDepth);
  }
  __device__ void publish(int tile) const {
    if (begins_group(tile)) slot(tile)[thread()] = Format::scale_of(group_);
  }

  const Matrix<Format>& matrix_;
  Scale* shared_;
  int row_;
  ScaleAndZero group_{};
};

/// Nothing, where weights have no scales.
template <typename T, int kThreads>
class TileScales<FloatWeights<T>, kThreads> {
 public:
  static constexpr int kBytes = 0;

  template <typename RowAt>
  __device__ TileScales(const Matrix<FloatWeights<T>>&, char*, const RowAt&) {}
  __device__ void advance(int) {}
};

/// Called by a warp: weights of T as left operand of operation `op`.
template <typename Format, typename Tile>
__device__ void load_weights(const char* shared, int first, int op, uint32_t (&fragment)[4]) {
  load_matrix(fragment, shared + WeightRows<Format, Tile>::offset(first + lane() % 16, op * 2 + lane() / 16));
}

/// Called by a warp: the right operand of operation `op`, twice kOpTokens rows.
template <typename Tile>
__device__ void load_rows(const char* shared, int first, int op, uint32_t (&fragments)[4]) {
  const int row = first + lane() / 16 * 8 + lane() % 8;
  load_matrix(fragments, shared + InputRows<Tile>::offset(row, op * 2 + lane() / 8 % 2));
}

/// Called by a warp: integer weights as left operand of both operations.
template <typename Format, typename Tile>
__device__ void unpack_weights(const char* shared, const TileScales<Format, Tile::kThreads>& scales, int tile,
                               int first, uint32_t (&fragments)[kTileOps][4]) {
  using Columns = typename Format::Columns;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Pairs pairs;
    const int row = first + i * 8 + lane() / 4;
    const char* columns = shared + WeightRows<Format, Tile>::offset(row, 0) + lane() % 4 * sizeof(Columns);
    Format::unpack(*reinterpret_cast<const Columns*>(columns), scales.at(tile, row), pairs);
#pragma unroll
    for (int j = 0; j < 4; ++j) fragments[j / 2][j % 2 * 2 + i] = pairs[j];
  }
}

/// Called by a warp: the right operand of both operations, kOpTokens rows.
template <typename Tile>
__device__ void load_pairs(const char* shared, int first, Pairs& pairs) {
  const char* columns = shared + InputRows<Tile>::offset(first + lane() / 4, lane() % 4);
  const uint4 piece = *reinterpret_cast<const uint4*>(columns);
  memcpy(pairs, &piece, sizeof pairs);
}

}  // namespace fastmmoe
