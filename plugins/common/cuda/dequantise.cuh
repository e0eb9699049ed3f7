// SPDX-License-Identifier: Apache-2.0
// The formats of weights: how 8 neighbouring columns of a row become pairs of type T, as tensor cores take
// them.
//
// No integer goes through a conversion instruction. 0x6400 is 1024 in half, and the last bit of half numbers
// from there on is worth 1: the bits 0x6400 | q are 1024 + q, for q below 1024. Subtracting 1024 + zero is
// exact and leaves q - zero, so only the product with the scale rounds. bfloat16 and float have such numbers
// too: the constants k...Magic below. How int4 is packed is said in exporter/ops/quantise.py.
//
// Nor does fp8, which only processors from compute capability 8.9 on convert: the exponent and mantissa of an
// e4m3, moved to where half has them, are its value over 256, numbers below the normal ones included.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda/device.cuh"
#include "common/cuda/ptx.cuh"

namespace fastmmoe {

/// Half of 8 columns for each of two tensor core operations: the elements of pairs[2 i] and pairs[2 i + 1]
/// are multiplied by operation i. Every order of columns is right if both operands have the same.
using Pairs = uint32_t[4];

/// Of a group of columns, as they are stored.
struct ScaleAndZero {
  __half scale;
  int zero;
};

template <typename To, typename From>
__device__ To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

/// What turns the integers of a group into T: 4 bytes for half, 8 for bfloat16, which has no room for a scale
/// of 11 bits, so that it is applied in float.
template <typename T>
struct Scale;

template <>
struct Scale<__half> {
  __half scale, zero;

  /// scale (x - zero) of both halves of a register.
  __device__ uint32_t apply(uint32_t x) const {
    const __half2 difference = __hsub2(bits_of<__half2>(x), __half2half2(zero));
    return bits_of<uint32_t>(__hmul2(difference, __half2half2(scale)));
  }
};

template <>
struct Scale<__nv_bfloat16> {
  float scale, zero;
};

/// Weights of type T as they are.
template <typename T>
struct FloatWeights {
  using Type = T;
  using Columns = uint4;
  struct Group {};
  struct Scale {};
  static constexpr int kBits = 16;

  __device__ static Scale scale_of(const Group&) { return {}; }
  __device__ static void unpack(const Columns& columns, const Scale&, Pairs& pairs) {
    memcpy(pairs, &columns, sizeof columns);
  }
};

template <typename T>
struct Int8Weights {
  using Type = T;
  using Columns = uint2;
  using Group = ScaleAndZero;
  using Scale = fastmmoe::Scale<T>;
  static constexpr int kBits = 8;
  static constexpr int kZero = 0;  // without zero points

  __device__ static Scale scale_of(const Group& group);
  __device__ static void unpack(const Columns& columns, const Scale& scale, Pairs& pairs);
};

template <typename T>
struct Int4Weights {
  using Type = T;
  using Columns = uint32_t;
  using Group = ScaleAndZero;
  using Scale = fastmmoe::Scale<T>;
  static constexpr int kBits = 4;
  static constexpr int kZero = 8;

  __device__ static Scale scale_of(const Group& group);
  __device__ static void unpack(Columns columns, const Scale& scale, Pairs& pairs);
};

/// Bits of e4m3, without NaN.
template <typename T>
struct Fp8Weights {
  using Type = T;
  using Columns = uint2;
  using Group = ScaleAndZero;
  using Scale = fastmmoe::Scale<T>;
  static constexpr int kBits = 8;
  static constexpr int kZero = 0;

  __device__ static Scale scale_of(const Group& group);
  __device__ static void unpack(const Columns& columns, const Scale& scale, Pairs& pairs);
};

// A byte with its sign bit turned is q + 128.
constexpr uint32_t kSignBits = 0x80808080u;
constexpr int kSignValue = 128;

// 0x6400 is 1024 in half, whose last bit is 1.
constexpr uint32_t kHalfMagic = 0x64006400u;
constexpr int kHalfMagicValue = 1024;

template <>
__device__ inline Scale<__half> Int8Weights<__half>::scale_of(const ScaleAndZero& group) {
  return {group.scale, __int2half_rn(kHalfMagicValue + kSignValue + group.zero)};
}

template <>
__device__ inline void Int8Weights<__half>::unpack(const uint2& columns, const Scale& scale, Pairs& pairs) {
  const uint32_t words[2] = {columns.x ^ kSignBits, columns.y ^ kSignBits};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = scale.apply(select_bytes(words[i / 2], kHalfMagic, i % 2 == 0 ? 0x5150 : 0x5352));
  }
}

template <>
__device__ inline Scale<__half> Int4Weights<__half>::scale_of(const ScaleAndZero& group) {
  return {group.scale, __int2half_rn(kHalfMagicValue + group.zero)};
}

template <>
__device__ inline void Int4Weights<__half>::unpack(uint32_t columns, const Scale& scale, Pairs& pairs) {
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = scale.apply(mask_and_set(columns >> 4 * i, 0x000f000fu, kHalfMagic));
}

// 0x4b000000 is 2^23 in float, whose last bit is 1.
constexpr uint32_t kFloatMagic = 0x4b000000u;
constexpr float kFloatMagicValue = 8388608.0f;

template <>
__device__ inline Scale<__nv_bfloat16> Int8Weights<__nv_bfloat16>::scale_of(const ScaleAndZero& group) {
  return {__half2float(group.scale), kFloatMagicValue + static_cast<float>(kSignValue + group.zero)};
}

template <>
__device__ inline void Int8Weights<__nv_bfloat16>::unpack(const uint2& columns, const Scale& scale,
                                                          Pairs& pairs) {
  const uint32_t words[2] = {columns.x ^ kSignBits, columns.y ^ kSignBits};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float values[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const uint32_t x = select_bytes(words[i / 2], kFloatMagic, 0x7440 + 2 * (i % 2) + c);
      values[c] = (__uint_as_float(x) - scale.zero) * scale.scale;
    }
    pairs[i] = bits_of<uint32_t>(__floats2bfloat162_rn(values[0], values[1]));
  }
}

// 0x4300 is 128 in bfloat16, whose last bit is 1.
constexpr uint32_t kBfloatMagic = 0x43004300u;
constexpr int kBfloatMagicValue = 128;

// One operation less than for int8: x and zero are so small that scale zero is exact in float, and so is the
// sum that scale x is added to.
template <>
__device__ inline Scale<__nv_bfloat16> Int4Weights<__nv_bfloat16>::scale_of(const ScaleAndZero& group) {
  const float scale = __half2float(group.scale);
  return {scale, -scale * static_cast<float>(kBfloatMagicValue + group.zero)};
}

template <>
__device__ inline void Int4Weights<__nv_bfloat16>::unpack(uint32_t columns, const Scale& scale,
                                                          Pairs& pairs) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t x = mask_and_set(columns >> 4 * i, 0x000f000fu, kBfloatMagic);
    const float first = __uint_as_float(x << 16), second = __uint_as_float(x & 0xffff0000u);
    pairs[i] = bits_of<uint32_t>(__floats2bfloat162_rn(__fmaf_rn(first, scale.scale, scale.zero),
                                                       __fmaf_rn(second, scale.scale, scale.zero)));
  }
}

// Scales are below 256, so that half holds their product.
constexpr float kFp8Factor = 256.0f;

/// Over kFp8Factor, columns 2 i and 2 i + 1 of the four in a word.
__device__ inline uint32_t fp8_as_half(uint32_t word, int i) {
  const uint32_t x = select_bytes(word, 0, i == 0 ? 0x1404 : 0x3424);
  return mask_and_set(x, 0x80008000u, (x & 0x7f007f00u) >> 1);
}

template <>
__device__ inline Scale<__half> Fp8Weights<__half>::scale_of(const ScaleAndZero& group) {
  return {__float2half_rn(__half2float(group.scale) * kFp8Factor), __float2half_rn(0.0f)};
}

template <>
__device__ inline void Fp8Weights<__half>::unpack(const uint2& columns, const Scale& scale, Pairs& pairs) {
  const uint32_t words[2] = {columns.x, columns.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half2 x = bits_of<__half2>(fp8_as_half(words[i / 2], i % 2));
    pairs[i] = bits_of<uint32_t>(__hmul2(x, __half2half2(scale.scale)));
  }
}

template <>
__device__ inline Scale<__nv_bfloat16> Fp8Weights<__nv_bfloat16>::scale_of(const ScaleAndZero& group) {
  return {__half2float(group.scale) * kFp8Factor, 0.0f};
}

template <>
__device__ inline void Fp8Weights<__nv_bfloat16>::unpack(const uint2& columns, const Scale& scale,
                                                         Pairs& pairs) {
  const uint32_t words[2] = {columns.x, columns.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = __half22float2(bits_of<__half2>(fp8_as_half(words[i / 2], i % 2)));
    pairs[i] = bits_of<uint32_t>(__floats2bfloat162_rn(x.x * scale.scale, x.y * scale.scale));
  }
}

/// Whether weights are integers or fp8 with scales.
template <typename Format>
constexpr bool kIsPacked = !std::is_empty_v<typename Format::Group>;

/// A matrix of weights in global memory.
template <typename Format>
class Matrix {
 public:
  using Group = typename Format::Group;

  /// Rows from first_row on, of `depth` columns, group_size to a group. zeros may be null.
  __device__ Matrix(const void* values, const void* scales, const int8_t* zeros, int first_row, int depth,
                    int group_size)
      : values_(static_cast<const char*>(values)),
        scales_(static_cast<const __half*>(scales)),
        zeros_(zeros),
        first_row_(first_row),
        depth_(depth) {
    if constexpr (kIsPacked<Format>) {
      shift_ = __ffs(group_size) - 1;
      groups_ = (depth + group_size - 1) >> shift_;
    }
  }

  __device__ int depth() const { return depth_; }
  __device__ int row_bytes() const { return depth_ * Format::kBits / 8; }
  __device__ const char* row(int row) const { return values_ + int64_t{first_row_ + row} * row_bytes(); }

  /// The number of a column's group in its row, and whether it begins there.
  __device__ int group_of(int column) const { return column >> shift_; }
  __device__ bool begins_group(int column) const { return group_of(column) << shift_ == column; }

  /// Of a column that is there.
  __device__ Group group(int row, int column) const {
    if constexpr (kIsPacked<Format>) {
      const int64_t index = int64_t{first_row_ + row} * groups_ + group_of(column);
      return {scales_[index], zeros_ == nullptr ? Format::kZero : zeros_[index]};
    } else {
      return {};
    }
  }

 private:
  const char* values_;
  const __half* scales_;
  const int8_t* zeros_;
  int first_row_, depth_, groups_ = 0, shift_ = 0;
};

}  // namespace fastmmoe
