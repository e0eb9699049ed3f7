// SPDX-License-Identifier: Apache-2.0
// 16-bit floating-point weights to float, exact for every bit pattern. Written with integer operations and
// selects, so that a compiler vectorises loops over them on any instruction set and flush-to-zero modes do
// not change the result.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastmmoe {

enum class FloatType { kFloat, kFloat16, kBfloat16 };

// Functions are static: this header is compiled for several instruction sets, and a linker must not pick one
// of them.

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Float16 {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

static inline float to_float(float value) { return value; }

static inline float to_float(Bfloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

static inline float to_float(Float16 value) {
  constexpr uint32_t kExponent = 0x7c00u << 13;  // the exponent field of a Float16 in its place in a float
  constexpr uint32_t kRebias = (127u - 15u) << 23;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & kExponent;
  const uint32_t finite = magnitude + kRebias;
  const uint32_t special = finite + kRebias;  // infinity and NaN have the greatest exponent in both formats
  // A subnormal gets an implicit one by this exponent; taking 2^-14 away leaves its exact value.
  const float subnormal = float_from_bits(finite + (1u << 23)) - 0x1p-14f;
  uint32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof subnormal_bits);
  const uint32_t bits = exponent == kExponent ? special : exponent == 0 ? subnormal_bits : finite;
  return float_from_bits(bits | (value.bits & 0x8000u) << 16);
}

}  // namespace fastmmoe
