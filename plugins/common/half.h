// SPDX-License-Identifier: Apache-2.0
// 16-bit floating-point weights to float, exact for every bit pattern. Written with integer operations and
// selects, so that it needs no special instructions and flush-to-zero modes do not change the result.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastmmoe {

enum class FloatType { kFloat, kFloat16, kBfloat16 };

struct Float16 {
  uint16_t bits;
};

struct Bfloat16 {
  uint16_t bits;
};

// Functions are static: this header is compiled for several instruction sets, and a linker must not pick one
// of them. Bits is a vector of uint32_t that hold 16 bits each, Float the vector of as many floats.

template <typename Float, typename Bits>
static inline Float reinterpret_bits(Bits bits) {
  static_assert(sizeof(Float) == sizeof(Bits));
  Float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename Float, typename Bits>
static inline Float float_from_bfloat16(Bits bits) {
  return reinterpret_bits<Float>(bits << 16);
}

template <typename Float, typename Bits>
static inline Float float_from_float16(Bits bits) {
  constexpr uint32_t kExponent = 0x7c00u << 13;  // the exponent field of a Float16 in its place in a float
  constexpr uint32_t kRebias = (127u - 15u) << 23;
  const Bits magnitude = (bits & 0x7fffu) << 13;
  const Bits exponent = magnitude & kExponent;
  const Bits finite = magnitude + kRebias;
  const Bits special = finite + kRebias;  // infinity and NaN have the greatest exponent in both formats
  // A subnormal gets an implicit one by this exponent; taking 2^-14 away leaves its exact value.
  const Bits subnormal = reinterpret_bits<Bits>(reinterpret_bits<Float>(finite + (1u << 23)) - 0x1p-14f);
  const Bits value = exponent == kExponent ? special : exponent == 0 ? subnormal : finite;
  return reinterpret_bits<Float>(value | (bits & 0x8000u) << 16);
}

}  // namespace fastmmoe
