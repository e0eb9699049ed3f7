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

/// Weights, and what each group has beside them as it is stored: for few rows, which use it once.
struct ByteColumns {
  const std::byte* words;
  const Float16* scales;
  const int8_t* zeros;  // null: all are `assumed`
  int assumed, offset;  // offset: what stored integers get

  /// Columns of a panel from `first` on.
  static ByteColumns of(const PanelMatrix& matrix, int64_t panel, int64_t first, int offset) {
    const PanelPlace place(matrix, panel, first);
    return {place.tiles, place.scale, place.zero, assumed_zero(matrix.format), offset};
  }

  /// Of kLanes outputs from `lane` on.
  Vector scale(int64_t group, int lane) const { return load(scales + group * kPanelOutputs + lane); }
  /// Factors of the rows' corrections.
  Ints zero(int64_t group, int lane) const {
    if (zeros == nullptr) return short_factors(all(assumed + offset));
    return short_factors(load(zeros + group * kPanelOutputs + lane) + offset);
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

/// What groups have beside their weights as the products need it: for many rows.
class ReadGroups {
 public:
  void read(const ByteColumns& panel, int64_t groups) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int o = 0; o < kPanelOutputs; o += kLanes) {
        store(panel.scale(g, o), &scales_[g][o]);
        store(panel.zero(g, o), &zeros_[g][o]);
      }
    }
  }
  Vector scale(int64_t group, int lane) const { return load(&scales_[group][lane]); }
  Ints zero(int64_t group, int lane) const { return load(&zeros_[group][lane]); }

 private:
  static constexpr int64_t kMostGroups = kByteColumns / 32;
  alignas(64) float scales_[kMostGroups][kPanelOutputs];
  alignas(64) int32_t zeros_[kMostGroups][kPanelOutputs];
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
  template <typename Groups>
  __attribute__((always_inline)) Vector add(Vector total, Ints sums, const Groups& groups, int64_t group,
                                            int lane) const {
    const Ints sum = add_short_product(sums, correction, groups.zero(group, lane));
    const Vector scaled = __builtin_convertvector(sum, Vector) * scale;
    return total + scaled * groups.scale(group, lane);
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
