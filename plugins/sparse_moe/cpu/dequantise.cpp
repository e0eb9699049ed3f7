// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/dequantise.h"

#include <array>
#include <cmath>

#include "common/divide.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

// Bits of float8 e4m3fn; its NaN stands for 480.
std::array<float, 256> make_fp8_values() {
  std::array<float, 256> values;
  for (int bits = 0; bits < 128; ++bits) {
    const int exponent = bits >> 3, mantissa = bits & 7;
    const float steps = static_cast<float>(exponent == 0 ? mantissa : mantissa + 8);
    values[bits] = std::ldexp(steps, (exponent == 0 ? 1 : exponent) - 10);
    values[bits + 128] = -values[bits];
  }
  return values;
}

float fp8_value(uint8_t bits) {
  static const std::array<float, 256> values = make_fp8_values();
  return values[bits];
}

// Nibble of column c of 8; the inverse of NIBBLE_COLUMNS.
constexpr int kNibbles[8] = {0, 4, 1, 5, 2, 6, 3, 7};

int nibble(const int8_t* row, int64_t column) {
  const int place = kNibbles[column % 8];
  const int byte = static_cast<uint8_t>(row[column / 8 * 4 + place / 2]);
  return place % 2 == 0 ? byte & 15 : byte >> 4;
}

float value_at(WeightFormat format, const int8_t* row, int64_t column) {
  if (format == WeightFormat::kInt4) return static_cast<float>(nibble(row, column));
  return format == WeightFormat::kFp8 ? fp8_value(static_cast<uint8_t>(row[column]))
                                      : static_cast<float>(row[column]);
}

}  // namespace

void dequantise_row(const PackedRows& matrix, int64_t row, float* to) {
  const bool is_int4 = matrix.format == WeightFormat::kInt4;
  const int64_t groups = divide_up(matrix.columns, matrix.group_size);
  const int8_t* values = matrix.values + row * (is_int4 ? matrix.columns / 2 : matrix.columns);
  for (int64_t c = 0; c < matrix.columns; ++c) {
    const int64_t group = row * groups + c / matrix.group_size;
    const int zero = matrix.zero != nullptr ? matrix.zero[group] : is_int4 ? 8 : 0;
    const float scale = float_from_float16<float>(uint32_t{matrix.scale[group].bits});
    to[c] = (value_at(matrix.format, values, c) - static_cast<float>(zero)) * scale;
  }
}

}  // namespace fastmmoe
