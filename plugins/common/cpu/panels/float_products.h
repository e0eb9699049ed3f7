// SPDX-License-Identifier: Apache-2.0
// Rows of floats: weights become floats, a few columns of a panel at a time, which all rows then use.
#pragma once

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"
#include "common/cpu/panels/row_blocks.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kFloatColumns = PanelRows::kGranule;  // at a time
constexpr int kVectors = kPanelOutputs / kLanes;

#if defined(__AVX512F__)
constexpr int kFloatRows = 12;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kFloatRows = 6;
#else
constexpr int kFloatRows = 2;
#endif

inline Bits load_words(const std::byte* from) {
  Bits words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

inline void decode_pairs(const std::byte* tiles, int64_t count, float* to) {
  for (int64_t c = 0; c < count; c += 2, to += 2 * kPanelOutputs) {
    for (int v = 0; v < kVectors; ++v, tiles += sizeof(Bits)) {
      const Bits words = load_words(tiles);
      store(reinterpret_bits<Vector>(words << 16), to + v * kLanes);
      store(reinterpret_bits<Vector>(words & 0xffff0000u), to + kPanelOutputs + v * kLanes);
    }
  }
}

// What column `field` of the words stands for.
struct Int8Words {
  static constexpr int kColumns = 4, kZero = assumed_zero(PanelFormat::kInt8);
  static constexpr int kPlaces[] = {0, 1, 2, 3};
  static Ints field(Bits words, int field) { return reinterpret_bits<Ints>(words << (24 - 8 * field)) >> 24; }
};

struct Int4Words {
  static constexpr int kColumns = 8, kZero = assumed_zero(PanelFormat::kInt4);
  static constexpr int kPlaces[] = {0, 2, 4, 6, 1, 3, 5, 7};  // NIBBLE_COLUMNS of exporter/ops/quantise.py
  static Ints field(Bits words, int field) { return reinterpret_bits<Ints>((words >> (4 * field)) & 15u); }
};

// A group of columns; scale and zero are its own.
template <typename Words>
void decode_group(const std::byte* tiles, int64_t count, const Float16* scale, const int8_t* zero,
                  float* to) {
  Vector scales[kVectors], zeros[kVectors];
  float wide[kPanelOutputs];
  for (int o = 0; o < kPanelOutputs; ++o) wide[o] = zero == nullptr ? Words::kZero : zero[o];
  for (int v = 0; v < kVectors; ++v) {
    scales[v] = load(scale + v * kLanes);
    zeros[v] = load(wide + v * kLanes);
  }
  for (int64_t c = 0; c < count; c += Words::kColumns, to += Words::kColumns * kPanelOutputs) {
    for (int v = 0; v < kVectors; ++v, tiles += sizeof(Bits)) {
      const Bits words = load_words(tiles);
#pragma GCC unroll 8
      for (int i = 0; i < Words::kColumns; ++i) {
        const Vector q = __builtin_convertvector(Words::field(words, i), Vector);
        store((q - zeros[v]) * scales[v], to + Words::kPlaces[i] * kPanelOutputs + v * kLanes);
      }
    }
  }
}

// Columns from `place` on, to [count, 16]; up to 7 more are written where the last word has them.
template <typename Words>
void decode_integers(const PanelMatrix& matrix, PanelPlace place, int64_t count, float* to) {
  for (int64_t c = 0; c < count; c += matrix.group_size) {
    decode_group<Words>(place.tiles, least_of(matrix.group_size, count - c), place.scale, place.zero,
                        to + c * kPanelOutputs);
    place.tiles += panel_bytes(matrix.format, matrix.group_size);
    place.scale += kPanelOutputs;
    if (place.zero != nullptr) place.zero += kPanelOutputs;
  }
}

inline void decode(const PanelMatrix& matrix, const PanelPlace& place, int64_t count, float* to) {
  switch (matrix.format) {
    case PanelFormat::kBfloat16:
      return decode_pairs(place.tiles, count, to);
    case PanelFormat::kInt8:
      return decode_integers<Int8Words>(matrix, place, count, to);
    case PanelFormat::kInt4:
      return decode_integers<Int4Words>(matrix, place, count, to);
  }
}

/// Adds to y the products of columns first to first + count of all rows with decoded weights.
struct FloatTiles {
  static constexpr int kRows = kFloatRows;

  const float* weights;  // [count, 16]
  int64_t first, count;
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    Vector sums[kR][kVectors];
    const float* x[kR];
    float* const to = y + row * y_stride;
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      x[r] = reinterpret_cast<const float*>(rows[row + r]) + first;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = first == 0 ? Vector{} : load(to + r * y_stride + v * kLanes);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      Vector columns[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) columns[v] = load(weights + c * kPanelOutputs + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] += columns[v] * all(x[r][c]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(sums[r][v], to + r * y_stride + v * kLanes);
    }
  }
};

/// Adds to y the products of a few rows with pairs of bfloat16 of kP panels as they are stored, column by
/// column as FloatTiles does. Panels take turns, since an addition waits for the one before it.
struct StoredPairTiles {
  static constexpr int kRows = 2, kPanels = 2;

  const std::byte* panels[kPanels];
  int64_t columns;
  const std::byte* const* rows;
  float* y;
  int64_t y_stride;

  template <int kR, int kP>
  void tile(int64_t row) const {
    constexpr int kV = kP * kVectors;
    Vector sums[kR][kV] = {};
    const float* x[kR];
    for (int r = 0; r < kR; ++r) x[r] = reinterpret_cast<const float*>(rows[row + r]);
    int64_t c = 0;
    for (; c + 1 < columns; c += 2) add_pair<2>(c, x, sums);
    if (c < columns) add_pair<1>(c, x, sums);
    for (int r = 0; r < kR; ++r) {
      for (int v = 0; v < kV; ++v) store(sums[r][v], y + (row + r) * y_stride + v * kLanes);
    }
  }

 private:
  template <int kColumns, int kR, int kV>
  void add_pair(int64_t c, const float* const (&x)[kR], Vector (&sums)[kR][kV]) const {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      const std::byte* word = panels[v / kVectors] + c / 2 * kPanelOutputs * sizeof(uint32_t);
      if (v % kVectors == 0) prefetch(word);
      const Bits words = load_words(word + v % kVectors * sizeof(Bits));
      const Vector first = reinterpret_bits<Vector>(words << 16);
      const Vector second = reinterpret_bits<Vector>(words & 0xffff0000u);
#pragma GCC unroll 2
      for (int r = 0; r < kR; ++r) {
        sums[r][v] += first * all(x[r][c]);
        if constexpr (kColumns > 1) sums[r][v] += second * all(x[r][c + 1]);
      }
    }
  }
};

template <int kP>
void multiply_stored_pairs(const PanelProduct& product, int64_t p) {
  const auto tiles_of = [&](int64_t panel) {
    return PanelPlace(*product.matrix, product.first_panel + panel, 0).tiles;
  };
  const StoredPairTiles tiles{{tiles_of(p), tiles_of(p + kP - 1)},
                              product.matrix->columns,
                              product.rows,
                              product.y + p * kPanelOutputs,
                              product.y_stride};
  for_row_blocks<kP>(tiles, product.count);
}

inline void multiply_few_rows_with_pairs(const PanelProduct& product) {
  int64_t p = 0;
  for (; p + 2 <= product.panels; p += 2) multiply_stored_pairs<2>(product, p);
  if (p < product.panels) multiply_stored_pairs<1>(product, p);
}

inline void multiply_floats(const PanelProduct& product) {
  if (product.matrix->format == PanelFormat::kBfloat16 && product.count <= StoredPairTiles::kRows) {
    return multiply_few_rows_with_pairs(product);
  }
  alignas(64) float weights[kFloatColumns * kPanelOutputs];
  const PanelMatrix& matrix = *product.matrix;
  for (int64_t p = 0; p < product.panels; ++p) {
    for (int64_t first = 0; first < matrix.columns; first += kFloatColumns) {
      const int64_t count = least_of(kFloatColumns, matrix.columns - first);
      decode(matrix, PanelPlace(matrix, product.first_panel + p, first), count, weights);
      const FloatTiles tiles{weights,         first, count, product.rows, product.y + p * kPanelOutputs,
                             product.y_stride};
      for_row_blocks<1>(tiles, product.count);
    }
  }
}

inline void prepare_floats(const PanelRows&, const float* x, int64_t first, int64_t count, std::byte* row) {
  std::memcpy(row + first * sizeof *x, x, count * sizeof *x);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
