// SPDX-License-Identifier: Apache-2.0
// Operands of the tensor cores in shared memory.
#pragma once

#include "attention/cuda/keys.cuh"

namespace fastmmoe::attention {

constexpr int kOpLines = 16, kOpKeys = 8, kOpDepth = 16;  // of a tensor core operation

/// Starts to copy the query of a piece's lines, zeros behind the last.
template <typename T, int kLines, int kThreads, int kWidth>
__device__ void copy_query(const AttentionParams& params, const Piece& piece, int key_head,
                           const SharedRows<kWidth>& shared) {
  const T* query = static_cast<const T*>(params.query);
  copy_rows<kLines, kThreads>(shared, static_cast<int>(params.D), query, [&](int i) {
    const int line = piece.first + i;
    return line < piece.end ? query + piece.place(line, key_head) * params.D : nullptr;
  });
}

/// Called by a warp: 16 rows from `row` on and 16 columns, as left operand.
template <int kWidth>
__device__ void load_left(const SharedRows<kWidth>& rows, int row, int column, uint32_t (&fragment)[4]) {
  load_matrix(fragment, rows.at(row, column, lane() % 16, lane() / 16));
}

/// Called by a warp: rows as columns of the right operand: two operations for 8 rows each.
template <int kWidth>
__device__ void load_right(const SharedRows<kWidth>& rows, int row, int column, uint32_t (&fragment)[4]) {
  load_matrix(fragment, rows.at(row, column, lane() / 16 * 8 + lane() % 8, lane() / 8 % 2));
}

/// Called by a warp: 16 rows as they are, as right operand: two operations for 8 columns each.
template <int kWidth>
__device__ void load_right_rows(const SharedRows<kWidth>& rows, int row, int column,
                                uint32_t (&fragment)[4]) {
  load_matrix<true>(fragment, rows.at(row, column, lane() % 16, lane() / 16));
}

}  // namespace fastmmoe::attention
