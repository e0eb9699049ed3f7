// SPDX-License-Identifier: Apache-2.0
// Products of rows with matrices whose weights lie in tile order: what FmmSparseMoE and other operators with
// large weights multiply with on the CPU. How to use it:
//
//   PanelMatrix matrix{PanelFormat::kInt4, N, K, 32, tiles, scale, zero};
//   const PanelRows rows = panel_rows(matrix.format, matrix.columns, matrix.group_size, is_exact);
//   std::vector<std::byte> prepared(T * rows.bytes);
//   for each t, in parallel: rows.prepare(x + t * K, 0, K, &prepared[t * rows.bytes]);
//   for each range of panels, in parallel: multiply_panels({&matrix, &rows, first, panels, pointers, T, y,
//   stride});
//
// A panel is 16 outputs. A matrix [N, K] is [ceil(N / 16), ceil(K / kb), 16, kb] elements, where kb columns
// of an output are 4 bytes: 2 of bfloat16, 4 of int8, 8 of int4 (a word of `pack_int4`,
// exporter/ops/quantise.py). What is beyond N or K is zeros in bfloat16 and int8; of int4 it may be anything.
//
// A product depends on its row, its panel and the processor alone: not on the rows and panels of its call. So
// results are the same for any number of threads. (With AMX many rows have no denormal numbers in bfloat16.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"

namespace fastmmoe {

constexpr int64_t kPanelOutputs = 16;

enum class PanelFormat { kBfloat16, kInt8, kInt4 };

/// What rows become before they are multiplied. kFloat: they stay as they are, and weights become floats.
/// kBfloat16: they are rounded. kInt8: each group of columns of a row is rounded to 127 steps either way of
/// 0, its greatest magnitude the last; sums of a group are exact.
enum class PanelArithmetic { kFloat, kBfloat16, kInt8 };

/// A matrix of weights. Integers q stand for scale (q - zero).
struct PanelMatrix {
  PanelFormat format;
  int64_t outputs, columns;  // N, K
  int64_t group_size;        // columns that share a scale: 32, 64 or 128; 0 with bfloat16
  const void* tiles;
  const Float16* scale;  // [ceil(N / 16), ceil(K / group_size), 16]
  const int8_t* zero;    // as scale; null: 0 with int8, 8 with int4
};

/// Bytes of a panel of this many columns.
int64_t panel_bytes(PanelFormat format, int64_t columns);

/// How rows are prepared for matrices that are alike in format, columns and groups.
struct PanelRows {
  PanelArithmetic arithmetic;
  PanelFormat format;
  int64_t columns, group_size;
  int64_t scales;       // kInt8: where in a row the scales of its groups are, float
  int64_t corrections;  // kInt8: int32 of each group: -sum of its integers, of 16 bits
  int64_t bytes;        // of a row, a multiple of 64

  /// Columns first to first + count of a row. first is a multiple of `granule`, and so is count but at the
  /// end of the row. NaN and infinities make no finite product.
  ///
  /// Args:
  ///     x: [count] float.
  ///     row: the whole prepared row.
  void prepare(const float* x, int64_t first, int64_t count, std::byte* row) const;

  static constexpr int64_t kGranule = 128;
};

/// is_exact: arithmetic in float whatever the format, for checks. Else it is the fastest of this processor:
/// kBfloat16 and kInt8 where it multiplies such vectors, float otherwise.
PanelRows panel_rows(PanelFormat format, int64_t columns, int64_t group_size, bool is_exact);

/// y[r * y_stride + 16 p + o] = product of row r with output o of panel first_panel + p, in float. All 16
/// outputs of a panel are written, those beyond N too.
struct PanelProduct {
  const PanelMatrix* matrix;
  const PanelRows* layout;  // of the rows
  int64_t first_panel, panels;
  const std::byte* const* rows;  // [count] pointers to prepared rows
  int64_t count;
  float* y;
  int64_t y_stride;
};
void multiply_panels(const PanelProduct& product);

}  // namespace fastmmoe
