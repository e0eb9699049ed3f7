// SPDX-License-Identifier: Apache-2.0
// The two matrix products of attention on tiles, in float and in pairs of bfloat16. Both take 32-bit units: a
// float, or two bfloat16 that follow each other along the sum. tile_products.h has them in tile registers.
#pragma once

#include "attention/cpu/lanes.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// Sums of kKeys x kVectors vectors, or kWeights x kVectors, live in registers beside what they are made of.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kKeys = 6, kWeights = 6, kVectors = 4;
#elif defined(__AVX2__)
constexpr int kKeys = 6, kWeights = 6, kVectors = 2;
#else
constexpr int kKeys = 4, kWeights = 4, kVectors = 2;
#endif
constexpr int kManyVectors = 2 * kVectors;  // where there is one row of weights

struct Floats {
  static constexpr int kPerUnit = 1;
  static Vector add_product(Vector sum, Vector a, Vector b) { return sum + a * b; }
};

#ifdef __AVX512BF16__
struct Pairs {
  static constexpr int kPerUnit = 2;
  static Vector add_product(Vector sum, Vector a, Vector b) {
    return _mm512_dpbf16_ps(sum, reinterpret_bits<__m512bh>(a), reinterpret_bits<__m512bh>(b));
  }
  // first[0], first[1], ..., then second, as bfloat16.
  static Vector join(Vector first, Vector second) {
    return reinterpret_bits<Vector>(_mm512_cvtne2ps_pbh(second, first));
  }
  // In each lane a pair: the lower half is that of `first`.
  static Vector pair(Vector first, Vector second) {
    const __m512i joined = reinterpret_bits<__m512i>(join(first, second));
    const __m512i order = _mm512_add_epi16(_mm512_set1_epi32(16 << 16),
                                           _mm512_mullo_epi32(_mm512_set1_epi32(0x10001), lane_numbers()));
    return reinterpret_bits<Vector>(_mm512_permutexvar_epi16(order, joined));
  }
  // In each lane a pair: bfloat16 `place` and those after it, of the first vector and of the second.
  static Vector interleave(Vector first, Vector second, int place) {
    const __m512i start = _mm512_set1_epi32(((2 * kLanes + place) << 16) | place);
    const __m512i order =
        _mm512_add_epi32(start, _mm512_mullo_epi32(_mm512_set1_epi32(0x10001), lane_numbers()));
    return reinterpret_bits<Vector>(_mm512_permutex2var_epi16(reinterpret_bits<__m512i>(first), order,
                                                              reinterpret_bits<__m512i>(second)));
  }
  static __m512i lane_numbers() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
};
#endif

// A unit in all lanes.
inline Vector broadcast(const float* unit) {
  float value;
  std::memcpy(&value, unit, sizeof value);
  return all(value);
}

struct ScoreTile {
  const float* keys;  // [kK], a row every key_stride units
  int64_t key_stride;
  const float* query;  // [units, kRowsPerTile], from the first of its columns on
  int64_t units;
  float* scores;  // as query
};

// scores[key, row] = sum over units of keys[key, unit] * query[unit, row], kV vectors of rows.
template <typename Products, int kK, int kV>
void score_tile(const ScoreTile& tile) {
  Vector sums[kK][kV] = {};
  const float* query = tile.query;
  for (int64_t u = 0; u < tile.units; ++u, query += kRowsPerTile) {
    Vector columns[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) columns[v] = load(query + v * kLanes);
#pragma GCC unroll 8
    for (int k = 0; k < kK; ++k) {
      const Vector key = broadcast(tile.keys + k * tile.key_stride + u);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) sums[k][v] = Products::add_product(sums[k][v], key, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kK; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store(sums[k][v], tile.scores + k * kRowsPerTile + v * kLanes);
  }
}

// Columns of one unit of values: there as units,
struct UnitColumns {
  static constexpr int kRows = 1, kFloatsPerVector = kLanes;
  template <int kV>
  static void load_columns(const float* values, int64_t, Vector (&columns)[kV]) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) columns[v] = load(values + v * kLanes);
  }
};

// or as bfloat16,
struct WideColumns {
  static constexpr int kRows = 1, kFloatsPerVector = kLanes / 2;
  template <int kV>
  static void load_columns(const float* values, int64_t, Vector (&columns)[kV]) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) columns[v] = load(reinterpret_cast<const Bfloat16*>(values) + v * kLanes);
  }
};

#ifdef __AVX512BF16__
// or as two rows of bfloat16. kV is even.
struct RowColumns {
  static constexpr int kRows = 2, kFloatsPerVector = kLanes / 2;
  template <int kV>
  static void load_columns(const float* values, int64_t stride, Vector (&columns)[kV]) {
    Vector first[kV / 2], second[kV / 2];
#pragma GCC unroll 8
    for (int v = 0; v < kV / 2; ++v) first[v] = load(values + v * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < kV / 2; ++v) second[v] = load(values + stride + v * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < kV / 2; ++v) {
      columns[2 * v] = Pairs::interleave(first[v], second[v], 0);
      columns[2 * v + 1] = Pairs::interleave(first[v], second[v], kLanes);
    }
  }
};
#endif

struct ValueTile {
  const float* weights;  // a unit every unit_stride, a row every row_stride
  int64_t unit_stride, row_stride;
  const float* values;   // from the first of its columns on
  int64_t value_stride;  // from row to row

  int64_t units;
  const float* rescale;  // [kR]
  float* output;         // as values, a row every output_stride
  int64_t output_stride;
};

// output[row] = output[row] * rescale[row] + sum over units of weights[unit, row] * values[unit], kV vectors.
template <typename Products, typename Columns, int kR, int kV>
void value_tile(const ValueTile& tile) {
  Vector sums[kR][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sums[r][v] = load(tile.output + r * tile.output_stride + v * kLanes) * tile.rescale[r];
    }
  }
  const float *weights = tile.weights, *values = tile.values;
  for (int64_t u = 0; u < tile.units; ++u) {
    Vector columns[kV];
    Columns::load_columns(values, tile.value_stride, columns);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vector weight = broadcast(weights + r * tile.row_stride);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) sums[r][v] = Products::add_product(sums[r][v], weight, columns[v]);
    }
    weights += tile.unit_stride;
    values += Columns::kRows * tile.value_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) store(sums[r][v], tile.output + r * tile.output_stride + v * kLanes);
  }
}

// The last keys or vectors, at most kK and kV of them, by the tile of their size.
template <typename Products, int kK, int kV>
void score_tile_of(int64_t keys, int64_t vectors, const ScoreTile& tile) {
  if constexpr (kK > 0 && kV > 0) {
    if (keys < kK) {
      score_tile_of<Products, kK - 1, kV>(keys, vectors, tile);
    } else if (vectors < kV) {
      score_tile_of<Products, kK, kV - 1>(keys, vectors, tile);
    } else {
      score_tile<Products, kK, kV>(tile);
    }
  }
}

template <typename Products, typename Columns, int kR, int kV>
void value_tile_of(int64_t rows, int64_t vectors, const ValueTile& tile) {
  if constexpr (kR > 0 && kV > 0) {
    if (rows < kR) {
      value_tile_of<Products, Columns, kR - 1, kR == 2 ? kManyVectors : kV>(rows, vectors, tile);
    } else if (vectors < kV) {
      value_tile_of<Products, Columns, kR, kV - Columns::kRows>(rows, vectors, tile);
    } else {
      value_tile<Products, Columns, kR, kV>(tile);
    }
  }
}

// lanes[i] = keys[min(i, count - 1)] * query: kLanes scores, of which `count` count. Keys are read one after
// the other, as they lie: so the processor foresees what comes, which doubles the rate at which they come
// from memory.
template <typename Products, typename Key>
Vector dot_products(const Key* keys, int64_t key_stride, int64_t count, const float* query, int64_t vectors) {
  Vector sums[kLanes];
  for (int k = 0; k < kLanes; ++k) {
    const Key* row = keys + (k < count ? k : count - 1) * key_stride;
    Vector sum = {};
    for (int64_t v = 0; v < vectors; ++v) {
      sum = Products::add_product(sum, load(row + v * kLanes), load(query + v * kLanes));
    }
    sums[k] = sum;
  }
  return sums_of(sums);
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
