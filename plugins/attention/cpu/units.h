// SPDX-License-Identifier: Apache-2.0
// Rows of query, keys and values as the 32-bit units that products.h multiplies.
#pragma once

#include "attention/cpu/attend.h"
#include "attention/cpu/products.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

struct Rows {
  const float* data;  // units
  int64_t stride;
};

inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Bfloat16 in the low halves, rounded to nearest, ties to even; NaN stays NaN.
inline Bits rounded(Vector value) {
  const Bits bits = reinterpret_bits<Bits>(value);
  const Bits even = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return value == value ? even : bits >> 16 | 0x40u;
}

inline Bits load_bits(const Bfloat16* from, int64_t count) {
  HalfBits bits = {};
  if (count >= kLanes) {
    std::memcpy(&bits, from, sizeof bits);
  } else {
    std::memcpy(&bits, from, static_cast<size_t>(count) * sizeof *from);
  }
  return __builtin_convertvector(bits, Bits);
}

inline Vector load_some(const Bfloat16* from, int64_t count) {
  return float_from_bfloat16<Vector>(load_bits(from, count));
}

void round_floats(const float* from, int64_t count, Bfloat16* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const HalfBits bits = __builtin_convertvector(rounded(load_some(from + i, count - i)), HalfBits);
    if (count - i >= kLanes) {
      std::memcpy(to + i, &bits, sizeof bits);
    } else {
      std::memcpy(to + i, &bits, static_cast<size_t>(count - i) * sizeof *to);
    }
  }
}

// Rows as float with zeros up to the end of the last vector.
template <typename Value>
Rows as_floats(const Value* from, int64_t stride, int64_t count, int64_t width, float* to) {
  const int64_t to_stride = padded(width);
  for (int64_t j = 0; j < count; ++j) {
    const Value* row = from + j * stride;
    float* to_row = to + j * to_stride;
    for (int64_t i = 0; i < width; i += kLanes) store(load_some(row + i, width - i), to_row + i);
  }
  return {to, to_stride};
}

// Values of a bfloat16 cache as they are; the stride of rows is even.
inline Rows stored_values(const AttendBlock& block, int64_t first) {
  const Bfloat16* data = static_cast<const Bfloat16*>(block.values) + first * block.value_stride;
  return {reinterpret_cast<const float*>(data), block.value_stride / 2};
}

// How a block's caches become units. Rows `first` to first + count.
template <typename Products>
struct Units;

template <>
struct Units<Floats> {
  static int64_t count(int64_t width) { return width; }

  static Rows rows(const AttendBlock& block, const void* from, int64_t stride, int64_t width, bool is_whole,
                   int64_t first, int64_t count, float* scratch) {
    if (block.cache_type == FloatType::kBfloat16) {
      return as_floats(static_cast<const Bfloat16*>(from) + first * stride, stride, count, width, scratch);
    }
    const float* data = static_cast<const float*>(from) + first * stride;
    if (!is_whole) return {data, stride};
    return width % kLanes == 0 ? Rows{data, stride} : as_floats(data, stride, count, width, scratch);
  }
  static Rows keys(const AttendBlock& block, bool is_whole, int64_t first, int64_t count) {
    return rows(block, block.keys, block.D, block.D, is_whole, first, count, block.scratch.keys);
  }
  static Rows values(const AttendBlock& block, int64_t first, int64_t count) {
    return rows(block, block.values, block.value_stride, block.W, true, first, count, block.scratch.values);
  }
  static Rows query(const AttendBlock& block, int64_t row, float*) { return {block.query[row], 0}; }
};

#ifdef __AVX512BF16__
template <>
struct Units<Pairs> {
  static int64_t count(int64_t width) { return (width + 1) / 2; }

  static Rows keys(const AttendBlock& block, bool is_whole, int64_t first, int64_t count) {
    const Bfloat16* data = static_cast<const Bfloat16*>(block.keys) + first * block.D;
    if (block.D % (is_whole ? 2 * kLanes : 2) == 0) {
      return {reinterpret_cast<const float*>(data), block.D / 2};
    }
    const int64_t stride = padded((block.D + 1) / 2);
    for (int64_t j = 0; j < count; ++j) {
      float* row = block.scratch.keys + j * stride;
      std::memset(row, 0, static_cast<size_t>(stride) * sizeof *row);
      std::memcpy(row, data + j * block.D, static_cast<size_t>(block.D) * sizeof *data);
    }
    return {block.scratch.keys, stride};
  }

  // Pairs of rows; the last of an odd number has 0 beside it.
  static Rows values(const AttendBlock& block, int64_t first, int64_t count) {
    const Bfloat16* data = static_cast<const Bfloat16*>(block.values) + first * block.value_stride;
    const int64_t stride = padded(block.W);
    for (int64_t j = 0; j < count; j += 2) {
      const Bfloat16* row = data + j * block.value_stride;
      float* to = block.scratch.values + j / 2 * stride;
      if (j + 1 == count) {
        pair_with_zeros(row, block.W, to);
      } else {
        pair(row, row + block.value_stride, block.W, to);
      }
    }
    return {block.scratch.values, stride};
  }

  static Rows query(const AttendBlock& block, int64_t row, float* scratch) {
    std::memset(scratch, 0, static_cast<size_t>(padded(count(block.D))) * sizeof *scratch);
    round_floats(block.query[row], block.D, reinterpret_cast<Bfloat16*>(scratch));
    return {scratch, 0};
  }

 private:
  static void pair(const Bfloat16* even, const Bfloat16* odd, int64_t width, float* to) {
    int64_t i = 0;
    for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
      const Vector first = load_whole(even + i), second = load_whole(odd + i);
      store(Pairs::interleave(first, second, 0), to + i);
      store(Pairs::interleave(first, second, kLanes), to + i + kLanes);
    }
    for (; i < width; i += kLanes) {
      const Bits bits = load_bits(even + i, width - i) | load_bits(odd + i, width - i) << 16;
      store(reinterpret_bits<Vector>(bits), to + i);
    }
  }
  static void pair_with_zeros(const Bfloat16* even, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i += kLanes) {
      store(reinterpret_bits<Vector>(load_bits(even + i, width - i)), to + i);
    }
  }
  static Vector load_whole(const Bfloat16* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
};
#endif

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
