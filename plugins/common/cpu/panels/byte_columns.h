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

  /// `count` columns of a panel from `first` on. offset: what stored integers get.
  void read(const PanelMatrix& matrix, int64_t panel, int64_t first, int64_t count, int offset) {
    const PanelPlace place(matrix, panel, first);
    words = place.tiles;
    const int64_t groups = (count + matrix.group_size - 1) / matrix.group_size;
    for (int64_t g = 0; g < groups; ++g) {
      for (int o = 0; o < kPanelOutputs; o += kLanes) {
        store(load(place.scale + g * kPanelOutputs + o), &scale[g][o]);
      }
      for (int o = 0; o < kPanelOutputs; ++o) {
        const int stored =
            place.zero == nullptr ? assumed_zero(matrix.format) : place.zero[g * kPanelOutputs + o];
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

/// What a prepared row has for a group, in all lanes. number: of the group in the row.
struct RowGroup {
  Ints correction;
  Vector scale;

  RowGroup(const std::byte* row, const PanelRows& layout, int64_t number)
      : correction(all(read<int32_t>(row + layout.corrections, number))),
        scale(all(read<float>(row + layout.scales, number))) {}

  /// total + the sums of the group with zeros and scales of kLanes outputs: in this order for all kernels, so
  /// that they give the same bits.
  Vector add(Vector total, Ints sums, const ByteColumns& panel, int64_t group, int lane) const {
    const Ints sum = add_short_product(sums, correction, load(&panel.zero[group][lane]));
    const Vector scaled = __builtin_convertvector(sum, Vector) * scale;
    return total + scaled * load(&panel.scale[group][lane]);
  }

 private:
  template <typename Value>
  static Value read(const std::byte* values, int64_t number) {
    Value value;
    std::memcpy(&value, values + number * sizeof value, sizeof value);
    return value;
  }
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
