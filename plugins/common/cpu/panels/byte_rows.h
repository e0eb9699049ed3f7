// SPDX-License-Identifier: Apache-2.0
// Rows as int8, group by group.
#pragma once

#include "common/cpu/lanes.h"
#include "common/cpu/panels/place.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr float kLevels = 127.0f;
constexpr float kLeastMagnitude = 1e-30f;  // a group without a greater one is zeros

typedef int8_t SixteenBytes __attribute__((vector_size(16)));

template <typename Lanes, typename Value, typename Function>
Value reduced(Lanes lanes, Value value, const Function& function) {
  for (int i = 0; i < kLanes; ++i) value = function(value, static_cast<Value>(lanes[i]));
  return value;
}

// The bits of the greatest magnitude: NaN has more than infinity, which has more than all others.
inline float greatest_magnitude(const float* x, int64_t count) {
  Ints greatest = {};
  for (int64_t c = 0; c < count; c += kLanes) {
    const Ints bits = reinterpret_bits<Ints>(load_values(x, c, count)) & 0x7fffffff;
    greatest = bits > greatest ? bits : greatest;
  }
  return reinterpret_bits<float>(
      reduced(greatest, int32_t{0}, [](int32_t a, int32_t b) { return a > b ? a : b; }));
}

// Those of int4 panels are in the order of a word's low nibbles, then its high ones.
inline void reorder(int64_t count, std::byte* bytes) {
  const SixteenBytes order = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
  for (int64_t c = 0; c < count; c += sizeof order) {
    SixteenBytes sixteen;
    std::memcpy(&sixteen, bytes + c, sizeof sixteen);
    sixteen = __builtin_shuffle(sixteen, order);
    std::memcpy(bytes + c, &sixteen, sizeof sixteen);
  }
}

/// A group of columns; `to` has room for whole vectors of them, and for 16.
inline void prepare_group(const PanelRows& rows, const float* x, int64_t count, std::byte* to, float* scale,
                          int32_t* correction) {
  const float greatest = greatest_magnitude(x, count);
  const bool is_zero = greatest < kLeastMagnitude;
  const float inverse = is_zero ? 0.0f : kLevels / greatest;
  // The sum, a fused multiplication and addition, is rounded to a whole number, to the even one of two that
  // are as near. Its low bits then hold it.
  const float rounder = 0x1.8p23f;
  Bits sums = {};  // of NaN they may be beyond int32
  const int64_t whole = (count + 15) / 16 * 16;
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Vector scaled = load_values(x, c, count) * inverse;
    const Ints integers = reinterpret_bits<Ints>(scaled + rounder) - reinterpret_bits<int32_t>(rounder);
    sums += reinterpret_bits<Bits>(integers);
    store_low_bytes(integers, to + c);
  }
  if (rows.format == PanelFormat::kInt4) reorder(whole, to);
  *scale = is_zero ? 0.0f : greatest / kLevels;
  const auto add = [](uint32_t a, uint32_t b) { return a + b; };
  *correction = static_cast<int32_t>(-reduced(sums, uint32_t{0}, add));
}

inline void prepare_bytes(const PanelRows& rows, const float* x, int64_t first, int64_t count,
                          std::byte* row) {
  for (int64_t c = 0; c < count; c += rows.group_size) {
    const int64_t group = (first + c) / rows.group_size;
    prepare_group(rows, x + c, least_of(rows.group_size, count - c), row + first + c,
                  reinterpret_cast<float*>(row + rows.scales) + group,
                  reinterpret_cast<int32_t*>(row + rows.corrections) + group);
  }
}

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
