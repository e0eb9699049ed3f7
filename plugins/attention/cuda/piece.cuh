// SPDX-License-Identifier: Apache-2.0
// What a block works on. A line is a row of the call with one of the G = N / K query heads that share a key
// head: line i G + g of a sequence is its row i with head g, so that the lines of a key head are one matrix,
// in which what a line sees never gets less. A piece is kLines lines of one sequence.
//
// TensorRT times plugins on memory that holds anything, so what is read from the device is made to fit first.
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "common/cuda/device.cuh"

namespace fastmmoe::attention {

struct Piece {
  int sequence;          // b
  int first_row, rows;   // of the sequence, in T
  int past, used;        // rows in its cache before the call, and after it
  int group, key_heads;  // G, K
  int first, end;        // lines of the sequence

  /// Which row of T, and which head of the key head, a line has.
  __device__ int row(int line) const { return first_row + line / group; }
  __device__ int head(int line) const { return line % group; }
  /// Place of a line in [T, N].
  __device__ int64_t place(int line, int key_head) const {
    return row(line) * (int64_t{group} * key_heads) + key_head * group + head(line);
  }
  /// The last key that a line sees.
  __device__ int limit(int line) const { return min(past + line / group, used - 1); }
  /// One past the last key that any line sees.
  __device__ int key_end() const { return limit(end - 1) + 1; }
  __device__ bool is_empty() const { return first >= end; }
};

__device__ inline int between(int value, int least, int most) { return max(least, min(value, most)); }

__device__ inline int sequence_start(const AttentionParams& params, int a) {
  return between(params.sequence_offsets[a], 0, static_cast<int>(params.T));
}

/// Where the cache of sequence b ends before the call.
__device__ inline int past_length(const AttentionParams& params, int b) {
  return between(params.past_lengths[b], 0, static_cast<int>(params.C));
}

/// Pieces that there are room for: every sequence but the last may begin in the middle of one.
template <int kLines>
__host__ __device__ inline int64_t most_pieces(int64_t A, int64_t T, int64_t group) {
  return T * group / kLines + A;
}

/// Piece `index`, which may be empty. Those of sequence a begin at T a's lines / kLines + a, so that no
/// sequence has to know how many rows those before it have.
template <int kLines>
__device__ Piece piece_at(const AttentionParams& params, int index) {
  const int A = static_cast<int>(params.A), T = static_cast<int>(params.T);
  Piece piece{};
  piece.key_heads = static_cast<int>(params.K);
  piece.group = static_cast<int>(params.N / params.K);
  const auto first_piece = [&](int a) { return sequence_start(params, a) * piece.group / kLines + a; };
  const int a = max(first_at_least(A, index + 1, first_piece) - 1, 0);
  piece.first_row = sequence_start(params, a);
  const int end = a + 1 == A ? T : between(params.sequence_offsets[a + 1], piece.first_row, T);
  if (end == piece.first_row) return piece;
  piece.sequence = params.sequence_ids[piece.first_row];
  if (piece.sequence < 0 || piece.sequence >= params.B) return piece;
  piece.rows = end - piece.first_row;
  piece.past = past_length(params, piece.sequence);
  piece.used = min(piece.past + piece.rows, static_cast<int>(params.C));
  piece.first = max(index - first_piece(a), 0) * kLines;
  piece.end = min(piece.first + kLines, piece.rows * piece.group);
  return piece;
}

}  // namespace fastmmoe::attention
