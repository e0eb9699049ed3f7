// SPDX-License-Identifier: Apache-2.0
// Rows of int8 with weights of int8 or int4. The sums of a group are exact.
#pragma once

#include <type_traits>

#include "common/cpu/lanes.h"
#include "common/cpu/panels/byte_columns.h"
#include "common/cpu/panels/byte_dots.h"
#include "common/cpu/panels/place.h"
#include "common/cpu/panels/row_blocks.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// Sums of kByteRows rows and kBytePanels panels fit into registers.
#if defined(__AVX512F__)
constexpr int kByteRows = 6, kBytePanels = 2;
#else
constexpr int kByteRows = 4, kBytePanels = 1;
#endif

/// Adds to y the products of columns of all rows with those of kP panels.
/// kHasParts: groups have more columns than Dots can add at once.
template <PanelFormat kFormat, typename Source, typename Groups, bool kHasParts>
struct ByteTiles {
  static constexpr int kRows = kByteRows;
  using Dot = Dots<kFormat>;

  const ByteColumns* panels;         // kP of them
  const Groups* groups;              // of each
  int64_t first, count, group_size;  // columns
  const PanelRows* layout;
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    constexpr int kV = kP * kVectorsOfPanel;
    Vector totals[kR][kV];
    float* const to = y + row * y_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v)
        totals[r][v] = first == 0 ? Vector{} : load(to + r * y_stride + v * kLanes);
    }
    const int64_t before = groups_of(first, group_size);
    for (int64_t group = 0; group * group_size < count; ++group) {
      add_group(row, group, before + group, totals);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) store(totals[r][v], to + r * y_stride + v * kLanes);
    }
  }

 private:
  const ByteColumns& panel_of(int vector) const { return panels[vector / kVectorsOfPanel]; }
  static constexpr int lane_of(int vector) { return vector % kVectorsOfPanel * kLanes; }

  template <int kR, int kV>
  void add_group(int64_t row, int64_t group, int64_t number, Vector (&totals)[kR][kV]) const {
    const int64_t c = group * group_size;
    Ints sums[kR][kV];
    const std::byte* x[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) x[r] = rows[row + r] + first + c;
    sum_products(x, c, least_of(group_size, count - c), sums);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const RowGroup of_row(rows[row + r], *layout, number);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        totals[r][v] = of_row.add(totals[r][v], sums[r][v], groups[v / kVectorsOfPanel], group, lane_of(v));
      }
    }
  }

  template <int kR, int kV>
  void sum_products(const std::byte* const (&x)[kR], int64_t c, int64_t columns, Ints (&sums)[kR][kV]) const {
    if constexpr (std::is_same_v<typename Dot::Sums, Ints>) {
      clear(sums);
      add_words(x, 0, c, columns, sums);
    } else {
      sum_part(x, 0, c, least_of(Dot::kColumns, columns), sums);
      if constexpr (kHasParts) {
        for (int64_t part = Dot::kColumns; part < columns; part += Dot::kColumns) {
          Ints more[kR][kV];
          sum_part(x, part, c + part, least_of(Dot::kColumns, columns - part), more);
          for (int r = 0; r < kR; ++r) {
            for (int v = 0; v < kV; ++v) sums[r][v] += more[r][v];
          }
        }
      }
    }
  }

  template <int kR, int kV>
  void sum_part(const std::byte* const (&x)[kR], int64_t from, int64_t c, int64_t columns,
                Ints (&sums)[kR][kV]) const {
    typename Dot::Sums parts[kR][kV];
    clear(parts);
    if (columns == Dot::kColumns) {
      add_words(x, from, c, Dot::kColumns, parts);  // a loop of known length
    } else {
      add_words(x, from, c, columns, parts);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] = Dot::whole(parts[r][v]);
    }
  }

  template <typename Sums, int kR, int kV>
  static void clear(Sums (&sums)[kR][kV]) {
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] = Sums{};
    }
  }

  // Columns of x from `from` on, of the weights from c on.
  template <int kR, int kV>
  void add_words(const std::byte* const (&x)[kR], int64_t from, int64_t c, int64_t columns,
                 typename Dot::Sums (&sums)[kR][kV]) const {
    const int64_t eights = columns / 8, start = c / 8 * Source::kBytes;
    for (int64_t i = 0; i < eights; ++i) {
      if constexpr (Source::kIsStored) {
        for (int v = 0; v < kV; v += kVectorsOfPanel) {
          const std::byte* words = panel_of(v).words + start + i * Source::kBytes;
          prefetch(words);
          if constexpr (Source::kBytes > kLineBytes) prefetch(words + kLineBytes);
        }
      }
      add_half<0>(x, from + 8 * i, start + i * Source::kBytes, sums);
      add_half<1>(x, from + 8 * i, start + i * Source::kBytes, sums);
    }
    if (columns == 8 * eights) return;
    // Up to seven columns are left.
    add_half<0>(x, from + 8 * eights, start + eights * Source::kBytes, sums);
    if (Source::kHasWholeEights || columns - 8 * eights > kFourBytes) {
      add_half<1>(x, from + 8 * eights, start + eights * Source::kBytes, sums);
    }
  }

  // Four columns of eight.
  template <int kHalf, int kR, int kV>
  void add_half(const std::byte* const (&x)[kR], int64_t from, int64_t place,
                typename Dot::Sums (&sums)[kR][kV]) const {
    typename Dot::Weights weights[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      weights[v] = Dot::weights(Source::template load<kHalf>(panel_of(v).words + place, v % kVectorsOfPanel));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const RowEight eight(x[r] + from);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[r][v] = Dot::template add<kHalf>(sums[r][v], weights[v], eight);
    }
  }
};

template <PanelFormat kFormat, typename Source, int kP, bool kHasParts = true, typename Groups>
void multiply_byte_columns(const PanelProduct& product, const ByteColumns* panels, const Groups* groups,
                           int64_t p, int64_t first, int64_t count) {
  constexpr int64_t kAtOnce = Dots<kFormat>::kColumns;
  if constexpr (kHasParts && kAtOnce > 0) {
    if (product.matrix->group_size <= kAtOnce) {
      return multiply_byte_columns<kFormat, Source, kP, false>(product, panels, groups, p, first, count);
    }
  }
  const ByteTiles<kFormat, Source, Groups, kHasParts> tiles{panels,
                                                            groups,
                                                            first,
                                                            count,
                                                            product.matrix->group_size,
                                                            product.layout,
                                                            product.rows,
                                                            product.y + p * kPanelOutputs,
                                                            product.y_stride};
  for_row_blocks<kP>(tiles, product.count);
}

// Rows of one tile read the weights as they are stored.
template <PanelFormat kFormat, int kP>
void multiply_few_rows(const PanelProduct& product, const ByteColumns* panels, int64_t p, int64_t first,
                       int64_t count) {
  using Source = std::conditional_t<kFormat == PanelFormat::kInt4, NibbleWords, ByteWords<kFormat>>;
  multiply_byte_columns<kFormat, Source, kP>(product, panels, panels, p, first, count);
}

template <PanelFormat kFormat, int kP>
void multiply_many_rows(const PanelProduct& product, ByteColumns* panels, int64_t p, int64_t first,
                        int64_t count) {
  constexpr bool kIsInt4 = kFormat == PanelFormat::kInt4;
  alignas(64) std::byte bytes[kIsInt4 ? kP : 1][kIsInt4 ? kByteColumns * kPanelOutputs : 1];
  ReadGroups groups[kP];
  for (int i = 0; i < kP; ++i) {
    groups[i].read(panels[i], groups_of(count, product.matrix->group_size));
    if constexpr (kIsInt4) panels[i].unpack(count, bytes[i]);
  }
  multiply_byte_columns<kFormat, ByteWords<kFormat>, kP>(product, panels, groups, p, first, count);
}

template <PanelFormat kFormat, int kP>
void multiply_byte_panels(const PanelProduct& product, int64_t p) {
  const PanelMatrix& matrix = *product.matrix;
  for (int64_t first = 0; first < matrix.columns; first += kByteColumns) {
    const int64_t count = least_of(kByteColumns, matrix.columns - first);
    ByteColumns panels[kP];
    for (int i = 0; i < kP; ++i) {
      panels[i] = ByteColumns::of(matrix, product.first_panel + p + i, first, Dots<kFormat>::kOffset);
    }
    if (product.count <= kByteRows) {
      multiply_few_rows<kFormat, kP>(product, panels, p, first, count);
    } else {
      multiply_many_rows<kFormat, kP>(product, panels, p, first, count);
    }
  }
}

template <PanelFormat kFormat>
void multiply_format(const PanelProduct& product) {
  int64_t p = 0;
  for (; p + kBytePanels <= product.panels; p += kBytePanels) {
    multiply_byte_panels<kFormat, kBytePanels>(product, p);
  }
  if constexpr (kBytePanels > 1) {
    if (p < product.panels) multiply_byte_panels<kFormat, 1>(product, p);
  }
}

inline void multiply_bytes(const PanelProduct& product) {
  if (product.matrix->format == PanelFormat::kInt4) return multiply_format<PanelFormat::kInt4>(product);
  multiply_format<PanelFormat::kInt8>(product);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
