// SPDX-License-Identifier: Apache-2.0
// What instruction sets have for sums of products of bytes: weights of some outputs with four columns of a
// row. A word is four columns of an output; a vector is words of kLanes outputs.
#pragma once

#ifdef FASTMMOE_X86
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#include "common/cpu/lanes.h"
#include "common/cpu/panels/panels.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

typedef int8_t Bytes __attribute__((vector_size(kLanes * 4)));
typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));

constexpr int64_t kFourBytes = 4;

inline Bytes load_bytes(const std::byte* from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

inline void store_bytes(Bytes bytes, std::byte* to) { std::memcpy(to, &bytes, sizeof bytes); }

// Dots<format>: Weights are what `weights` makes of stored bytes, Sums what `add` adds products to, for at
// most kColumns columns (0: for any number) from `whole` to `whole`. Stored integers q mean q + kOffset.
//
// RowEight: eight columns of a row.

#if defined(__AVX512VNNI__) || defined(__AVX2__)

struct RowEight {
  const std::byte* x;

  explicit RowEight(const std::byte* from) : x(from) {}

  template <int kHalf>
  Ints word() const {
    int32_t four;
    std::memcpy(&four, x + kHalf * kFourBytes, sizeof four);
    return all(four);
  }
};

#endif

#if defined(__AVX512VNNI__)

// vpdpbusd: weights are unsigned, so that those of int8 become q + 128.
template <PanelFormat kFormat>
struct Dots {
  static constexpr int kOffset = kFormat == PanelFormat::kInt8 ? 128 : 0;
  static constexpr int64_t kColumns = 0;
  using Weights = Bytes;
  using Sums = Ints;

  static Weights weights(Bytes stored) {
    return kOffset == 0 ? stored : stored ^ static_cast<int8_t>(-kOffset);
  }
  template <int kHalf>
  static Sums add(Sums sums, Weights weights, const RowEight& row) {
    return reinterpret_bits<Ints>(_mm512_dpbusd_epi32(reinterpret_bits<__m512i>(sums),
                                                      reinterpret_bits<__m512i>(weights),
                                                      reinterpret_bits<__m512i>(row.word<kHalf>())));
  }
};

// Pairs of 16 bits are multiplied; the second of each is 0.
inline Ints short_factors(Ints values) { return values & 0xffff; }

// sums + a b, where a has 16 bits and b is what `short_factors` makes of 16 bits.
inline Ints add_short_product(Ints sums, Ints a, Ints b) {
  return reinterpret_bits<Ints>(_mm512_dpwssd_epi32(
      reinterpret_bits<__m512i>(sums), reinterpret_bits<__m512i>(a), reinterpret_bits<__m512i>(b)));
}

#elif defined(__AVX2__)

inline Shorts add_pairs(Bytes unsigned_bytes, Bytes bytes) {
  return reinterpret_bits<Shorts>(
      _mm256_maddubs_epi16(reinterpret_bits<__m256i>(unsigned_bytes), reinterpret_bits<__m256i>(bytes)));
}

inline Ints add_pairs(Shorts a, Shorts b) {
  return reinterpret_bits<Ints>(
      _mm256_madd_epi16(reinterpret_bits<__m256i>(a), reinterpret_bits<__m256i>(b)));
}

template <PanelFormat kFormat>
struct Dots;

// Weights are 0 to 15: a sum of 16 products, two of each of 8 words, has 16 bits (2 * 8 * 15 * 127).
template <>
struct Dots<PanelFormat::kInt4> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kColumns = 32;
  using Weights = Bytes;
  using Sums = Shorts;

  static Weights weights(Bytes stored) { return stored; }
  template <int kHalf>
  static Sums add(Sums sums, Weights weights, const RowEight& row) {
    sums += add_pairs(weights, reinterpret_bits<Bytes>(row.word<kHalf>()));
    asm("" : "+x"(sums));  // GCC 12 would make all products of a word first, which fill the registers
    return sums;
  }
  static Ints whole(Sums sums) { return add_pairs(sums, Shorts{} + 1); }
};

// One factor has to be unsigned: the weight is, and the row takes its sign. Two products have 16 bits
// (2 * 128 * 127), three do not.
template <>
struct Dots<PanelFormat::kInt8> {
  static constexpr int kOffset = 0;
  static constexpr int64_t kColumns = 0;
  struct Weights {
    __m256i signs, magnitudes;
  };
  using Sums = Ints;

  static Weights weights(Bytes stored) {
    const auto bytes = reinterpret_bits<__m256i>(stored);
    return {bytes, _mm256_abs_epi8(bytes)};
  }
  template <int kHalf>
  static Sums add(Sums sums, const Weights& weights, const RowEight& row) {
    const __m256i x = _mm256_sign_epi8(reinterpret_bits<__m256i>(row.word<kHalf>()), weights.signs);
    const Shorts pairs = add_pairs(reinterpret_bits<Bytes>(weights.magnitudes), reinterpret_bits<Bytes>(x));
    return sums + add_pairs(pairs, Shorts{} + 1);
  }
};

inline Ints short_factors(Ints values) { return values & 0xffff; }

inline Ints add_short_product(Ints sums, Ints a, Ints b) {
  return sums + add_pairs(reinterpret_bits<Shorts>(a), reinterpret_bits<Shorts>(b));
}

#else

struct RowEight {
  int8x8_t x;

  explicit RowEight(const std::byte* from) : x(vld1_s8(reinterpret_cast<const int8_t*>(from))) {}
};

template <PanelFormat kFormat>
struct Dots {
  static constexpr int kOffset = 0;
  static constexpr int64_t kColumns = 0;
  using Weights = Bytes;
  using Sums = Ints;

  static Weights weights(Bytes stored) { return stored; }
  template <int kHalf>
  static Sums add(Sums sums, Weights weights, const RowEight& row) {
    return vdotq_lane_s32(sums, weights, row.x, kHalf);
  }
};

inline Ints add_short_product(Ints sums, Ints a, Ints b) { return sums + a * b; }
inline Ints short_factors(Ints values) { return values; }

#endif

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
