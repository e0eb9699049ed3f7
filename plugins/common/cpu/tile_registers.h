// SPDX-License-Identifier: Apache-2.0
// The tile registers of AMX: eight of at most 16 rows of 64 bytes. With FASTMMOE_SOFTWARE_TILES they are in
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
constexpr int kTileUnits = 16, kUnitBytes = 4;  // a unit is a float, an int32, two bfloat16 or four int8

// Registers 0 to 3 have sums, 4 and 5 left operands, 6 and 7 right ones: with two of each a load serves two
// products.
constexpr int kLeftTile = 4, kRightTile = 6;

/// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  /// units: of a row of the left operands, which are the rows of the right ones.
  explicit TileConfig(int units) {
    for (int i = 0; i < kTileRegisters; ++i) {
      const bool is_left = i >= kLeftTile && i < kRightTile;
      row_bytes[i] = static_cast<uint16_t>(is_left ? units * kUnitBytes : kTileBytes);
      rows[i] = static_cast<uint8_t>(i >= kRightTile ? units : kTileRows);
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

/// The register's rows, one every `stride` of From.
template <int kTile, typename From>
inline void load_tile(const From* from, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof *from);
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(kTile) : "memory");
}

template <int kTile, typename To>
inline void store_tile(To* to, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof *to);
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(bytes), "i"(kTile) : "memory");
}

/// sum[row, column] += left[row, unit] * right[unit, column] over the units: pairs of bfloat16, sums in
/// float,
template <int kSum, int kLeft, int kRight>
inline void add_pair_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

/// or four int8, sums in int32.
template <int kSum, int kLeft, int kRight>
inline void add_byte_products() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

#else

// A thread's registers. Whatever the processor would refuse ends the process.
struct SoftwareTiles {
  bool is_configured = false;
  TileConfig config{kTileUnits};
  uint32_t rows[kTileRegisters][kTileRows][kTileUnits] = {};
};
thread_local SoftwareTiles software_tiles;

inline void expect_tiles(bool holds) {
  if (!holds) std::abort();
}

inline void configure_tiles(const TileConfig& config) {
  expect_tiles(config.palette == 1 && config.start_row == 0 && !software_tiles.is_configured);
  software_tiles = SoftwareTiles{};
  software_tiles.config = config;
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

template <int kTile, typename From>
void load_tile(const From* from, int64_t stride) {
  zero_tile<kTile>();
  for (int r = 0; r < software_tiles.config.rows[kTile]; ++r) {
    std::memcpy(software_tile<kTile>()[r], from + r * stride, software_tiles.config.row_bytes[kTile]);
  }
}

template <int kTile, typename To>
void store_tile(To* to, int64_t stride) {
  for (int r = 0; r < software_tiles.config.rows[kTile]; ++r) {
    std::memcpy(to + r * stride, software_tile<kTile>()[r], software_tiles.config.row_bytes[kTile]);
  }
}

// The units of a row of the left operand, whose registers have to fit to the others.
template <int kSum, int kLeft, int kRight>
int product_units() {
  static_assert(kSum != kLeft && kSum != kRight && kLeft != kRight, "the processor refuses these");
  const TileConfig& config = software_tiles.config;
  const int units = config.row_bytes[kLeft] / kUnitBytes;
  expect_tiles(config.rows[kSum] == config.rows[kLeft] && config.rows[kRight] == units &&
               config.row_bytes[kSum] == config.row_bytes[kRight]);
  return units;
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
void add_pair_products() {
  const int units = product_units<kSum, kLeft, kRight>();
  auto &sums = software_tile<kSum>(), &left = software_tile<kLeft>(), &right = software_tile<kRight>();
  for (int m = 0; m < software_tiles.config.rows[kSum]; ++m) {
    float low[kTileUnits] = {}, high[kTileUnits] = {};
    for (int k = 0; k < units; ++k) {
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

inline int32_t byte_of(uint32_t unit, int place) { return static_cast<int8_t>(unit >> (8 * place)); }

/// Sums are those of 32 bits, without an end.
template <int kSum, int kLeft, int kRight>
void add_byte_products() {
  const int units = product_units<kSum, kLeft, kRight>();
  auto &sums = software_tile<kSum>(), &left = software_tile<kLeft>(), &right = software_tile<kRight>();
  for (int m = 0; m < software_tiles.config.rows[kSum]; ++m) {
    for (int k = 0; k < units; ++k) {
      for (int n = 0; n < kTileUnits; ++n) {
        for (int i = 0; i < kUnitBytes; ++i) {
          sums[m][n] += static_cast<uint32_t>(byte_of(left[m][k], i) * byte_of(right[k][n], i));
        }
      }
    }
  }
}

#endif

/// All registers are configured while it lives, the operands for products over so many units.
class TileRegisters {
 public:
  explicit TileRegisters(int units = kTileUnits) { configure_tiles(TileConfig(units)); }
  ~TileRegisters() { release_tiles(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
