// SPDX-License-Identifier: Apache-2.0
// Which keys of a tile are in the windows of which rows.
#pragma once

#include "attention/cpu/attend.h"
#include "attention/cpu/lanes.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

// Positions of the keys of a tile, and which rows see them.
class Positions {
 public:
  explicit Positions(const AttendBlock& block) : block_(block) {
    if (!block.has_positions) return;
    for (int64_t r = 0; r < block.rows; ++r) {
      const int32_t first = block.first_position[r], last = block.last_position[r];
      if (r == 0 || first < least_first_) least_first_ = first;
      if (r == 0 || first > greatest_first_) greatest_first_ = first;
      if (r == 0 || last < least_last_) least_last_ = last;
      if (r == 0 || last > greatest_last_) greatest_last_ = last;
    }
  }

  // Reads those of key rows `first` to first + count. False: no row sees one of them.
  bool read(int64_t first, int64_t count) {
    if (!block_.has_positions) return true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = first + i;
      values_[i] = j < block_.old_rows ? block_.old_positions[j] : block_.new_positions[j - block_.old_rows];
    }
    for (int64_t i = count; i < kKeysPerTile; ++i) values_[i] = values_[0];
    Ints least = load(values_), greatest = least;
    for (int64_t i = kLanes; i < kKeysPerTile; i += kLanes) {
      const Ints value = load(values_ + i);
      least = value < least ? value : least;
      greatest = value > greatest ? value : greatest;
    }
    int32_t low = least[0], high = greatest[0];
    for (int i = 1; i < kLanes; ++i) {
      low = least[i] < low ? least[i] : low;
      high = greatest[i] > high ? greatest[i] : high;
    }
    all_see_ = greatest_first_ <= low && high <= least_last_;
    return least_first_ <= high && low <= greatest_last_;
  }

  // Every row sees every key of the tile as far as positions go.
  bool all_see() const { return !block_.has_positions || all_see_; }

  // Of key i for rows from r on, or of keys from i on for row r.
  Ints rows_see(int64_t i, int64_t r) const {
    const Ints position = all(values_[i]);
    return (load(block_.first_position + r) <= position) & (position <= load(block_.last_position + r));
  }
  Ints row_sees(int64_t i, int64_t r) const {
    const Ints position = load(values_ + i);
    return (all(block_.first_position[r]) <= position) & (position <= all(block_.last_position[r]));
  }

 private:
  const AttendBlock& block_;
  int32_t least_first_ = 0, greatest_first_ = 0, least_last_ = 0, greatest_last_ = 0;
  int32_t values_[kKeysPerTile];
  bool all_see_ = true;
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
