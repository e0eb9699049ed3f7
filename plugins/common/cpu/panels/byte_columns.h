// SPDX-License-Identifier: Apache-2.0
// Some columns of a panel of integers, as the tiles of rows read them.
#pragma once

#include "common/cpu/lanes.h"
#include "common/cpu/panels/byte_dots.h"
#include "common/cpu/panels/place.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

constexpr int64_t kByteColumns = 512;                    // at a time: a panel of as many bytes is 8 KiB
constexpr int kVectorsOfPanel = kPanelOutputs / kLanes;  // of words of four columns
constexpr int64_t kWordsBytes = kPanelOutputs * kFourBytes;

// Sources: `load` gives the first or second word of eight columns, which are in the order of the rows' bytes.

/// Bytes in words of four columns. An int8 panel may end with one word of eight columns, unpacked nibbles do
/// not: their columns stand in another order.
template <PanelFormat kFormat>
struct ByteWords {
  static constexpr bool kIsStored = kFormat == PanelFormat::kInt8, kHasWholeEights = !kIsStored;
  static constexpr int64_t kBytes = 2 * kWordsBytes;  // of eight columns
  template <int kHalf>
  static Bytes load(const std::byte* from, int vector) {
    return load_bytes(from + kHalf * kWordsBytes + vector * sizeof(Bytes));
  }
};

/// Nibbles in words of eight columns.
struct NibbleWords {
  static constexpr bool kIsStored = true, kHasWholeEights = true;
  static constexpr int64_t kBytes = kWordsBytes;
  template <int kHalf>
  static Bytes load(const std::byte* from, int vector) {
    const Bytes both = load_bytes(from + vector * sizeof(Bytes));
    return (kHalf == 0 ? both : reinterpret_bits<Bytes>(reinterpret_bits<Shorts>(both) >> 4)) & 15;
  }
};

/// Weights, and what each group has beside them.
struct ByteColumns {
  static constexpr int64_t kMostGroups = kByteColumns / 32;

  const std::byte* words;
  alignas(64) float scale[kMostGroups][kPanelOutputs];
  alignas(64) int32_t zero[kMostGroups][kPanelOutputs];  // factors of the rows' corrections

  /// offset: what stored integers get. assumed_zero: of stored integers without zeros.
  void read(const PanelPlace& place, int64_t groups, int assumed_zero, int offset) {
    words = place.tiles;
    for (int64_t g = 0; g < groups; ++g) {
      for (int o = 0; o < kPanelOutputs; o += kLanes) {
        store(load(place.scale + g * kPanelOutputs + o), &scale[g][o]);
      }
      for (int o = 0; o < kPanelOutputs; ++o) {
        const int stored = place.zero == nullptr ? assumed_zero : place.zero[g * kPanelOutputs + o];
        zero[g][o] = short_factor(stored + offset);
      }
    }
  }

  /// Nibbles become bytes, once for many rows.
  void unpack(int64_t columns, std::byte* to) {
    const std::byte* from = words;
    words = to;
    for (int64_t c = 0; c < columns; c += 8, from += NibbleWords::kBytes, to += 2 * kWordsBytes) {
      prefetch(from);
      for (int v = 0; v < kVectorsOfPanel; ++v) {
        store_bytes(NibbleWords::load<0>(from, v), to + v * sizeof(Bytes));
        store_bytes(NibbleWords::load<1>(from, v), to + kWordsBytes + v * sizeof(Bytes));
      }
    }
  }
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
