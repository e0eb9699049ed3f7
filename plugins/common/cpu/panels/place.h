// SPDX-License-Identifier: Apache-2.0
// A column of a panel, and some of a row. For the files that are compiled once for each instruction set.
#pragma once

#include "common/cpu/lanes.h"
#include "common/cpu/panels/panels.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

/// Of so many columns; the last may be less than a whole one. A division would take as long as a group's
/// products, and sizes of groups are powers of two.
inline int64_t groups_of(int64_t columns, int64_t group_size) {
  return (columns + group_size - 1) >> __builtin_ctzll(static_cast<unsigned long long>(group_size));
}

/// Where a column's weights, scales and zeros are. The column is the first of a group.
struct PanelPlace {
  const std::byte* tiles;
  const Float16* scale;
  const int8_t* zero;

  PanelPlace(const PanelMatrix& matrix, int64_t panel, int64_t column)
      : tiles(static_cast<const std::byte*>(matrix.tiles) +
              panel * panel_bytes(matrix.format, matrix.columns) + panel_bytes(matrix.format, column)),
        scale(nullptr),
        zero(nullptr) {
    if (matrix.group_size == 0) return;
    const int64_t groups = groups_of(matrix.columns, matrix.group_size);
    const int64_t group = (panel * groups + groups_of(column, matrix.group_size)) * kPanelOutputs;
    scale = matrix.scale + group;
    if (matrix.zero != nullptr) zero = matrix.zero + group;
  }
};

// Of `count` columns of a row those from c on; those after its end are 0.
inline Vector load_values(const float* x, int64_t c, int64_t count) {
  if (count - c >= kLanes) return load(x + c);
  Vector values = {};
  if (c < count) std::memcpy(&values, x + c, static_cast<size_t>(count - c) * sizeof *x);
  return values;
}

/// Of integers without zeros.
constexpr int assumed_zero(PanelFormat format) { return format == PanelFormat::kInt4 ? 8 : 0; }

constexpr int64_t kLineBytes = 64;

// Brings what is read a page later into the second cache: the processor alone does not look that far ahead,
// so that it would wait for memory and multiply by turns.
inline void prefetch(const std::byte* from) {
  constexpr int kReads = 0, kSecondCache = 2;
  __builtin_prefetch(from + 4096, kReads, kSecondCache);
}

template <typename Value>
Value least_of(Value a, Value b) {
  return a < b ? a : b;
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
