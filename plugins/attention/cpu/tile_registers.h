// SPDX-License-Identifier: Apache-2.0
// The tile registers of AMX: eight, here all of 16 rows of 64 bytes. With FASTMMOE_SOFTWARE_TILES they are in
// memory, and what the operations do is Intel's pseudo code (Software Developer's Manual, volume 2): for
// tests on processors without them.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef FASTMMOE_SOFTWARE_TILES
#include <cmath>
#include <cstdlib>
#endif

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int kTileRegisters = 8, kTileRows = 16, kTileBytes = 64;
constexpr int kTileUnits = 16;  // 32-bit units of a row

/// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig() {
    for (int i = 0; i < kTileRegisters; ++i) {
      row_bytes[i] = kTileBytes;
      rows[i] = kTileRows;
    }
  }
};
static_assert(sizeof(TileConfig) == 64);

#ifndef FASTMMOE_SOFTWARE_TILES

// Not the compiler's intrinsics: those of GCC 12 do not say what memory they read.
inline void configure_tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

/// Rows of 64 bytes, a row every `stride` units.
template <int kTile>
inline void load_tile(const float* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(float* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(kTile) : "memory");
}

/// sum[row, column] += left[row, unit] * right[unit, column] over the 16 units, pairs of bfloat16.
template <int kSum, int kLeft, int kRight>
inline void add_tile_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

#else

// A thread's registers. Whatever the processor would refuse ends the process.
struct SoftwareTiles {
  bool is_configured = false;
  uint32_t rows[kTileRegisters][kTileRows][kTileUnits] = {};
};
thread_local SoftwareTiles software_tiles;

inline void expect_tiles(bool holds) {
  if (!holds) std::abort();
}

inline void configure_tiles(const TileConfig& config) {
  expect_tiles(config.palette == 1 && config.start_row == 0 && !software_tiles.is_configured);
  software_tiles = SoftwareTiles{};
  software_tiles.is_configured = true;
}
inline void release_tiles() { software_tiles = SoftwareTiles{}; }

template <int kTile>
auto& software_tile() {
  static_assert(kTile >= 0 && kTile < kTileRegisters);
  expect_tiles(software_tiles.is_configured);
  return software_tiles.rows[kTile];
}

template <int kTile>
void zero_tile() {
  std::memset(software_tile<kTile>(), 0, sizeof software_tiles.rows[kTile]);
}

template <int kTile>
void load_tile(const float* from, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) {
    std::memcpy(software_tile<kTile>()[r], from + r * stride, kTileBytes);
  }
}

template <int kTile>
void store_tile(float* to, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) {
    std::memcpy(to + r * stride, software_tile<kTile>()[r], kTileBytes);
  }
}

// Denormal numbers are zeros, as operands and as results. A result that is the least normal number may be one
// that was less by up to a part in 2^24, which the processor makes 0.
inline float without_denormal(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float tile_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return without_denormal(value);
}

inline float fused(float a, float b, float sum) { return without_denormal(std::fma(a, b, sum)); }

/// The first halves of the pairs are one sum, the second halves another, each in the order of the units with
/// one rounding a product; then both are added, and then what was there.
template <int kSum, int kLeft, int kRight>
void add_tile_products() {
  static_assert(kSum != kLeft && kSum != kRight && kLeft != kRight, "the processor refuses these");
  auto &sums = software_tile<kSum>(), &left = software_tile<kLeft>(), &right = software_tile<kRight>();
  for (int m = 0; m < kTileRows; ++m) {
    float low[kTileUnits] = {}, high[kTileUnits] = {};
    for (int k = 0; k < kTileUnits; ++k) {
      const float left_low = tile_float(left[m][k] << 16), left_high = tile_float(left[m][k] & 0xffff0000u);
      for (int n = 0; n < kTileUnits; ++n) {
        low[n] = fused(left_low, tile_float(right[k][n] << 16), low[n]);
        high[n] = fused(left_high, tile_float(right[k][n] & 0xffff0000u), high[n]);
      }
    }
    for (int n = 0; n < kTileUnits; ++n) {
      const float sum = without_denormal(tile_float(sums[m][n]) + without_denormal(low[n] + high[n]));
      std::memcpy(&sums[m][n], &sum, sizeof sum);
    }
  }
}

#endif

/// All registers are configured while it lives.
class TileRegisters {
 public:
  TileRegisters() { configure_tiles(TileConfig()); }
  ~TileRegisters() { release_tiles(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
