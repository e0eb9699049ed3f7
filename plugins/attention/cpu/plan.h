// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cpu/kernel.h"

namespace fastmmoe {

/// The work of one sequence of a call: items of one key head each, and of some query rows or of some keys.
struct PlannedSequence {
  int64_t first, length;  // rows of the call
  int64_t cache;          // of the B
  int64_t past;           // rows of the cache before the call
  int64_t begin;          // no row sees a key before this one, the first of a tile
  int64_t tiles;          // items of a key head, each all keys of some query rows; 0: there are parts
  int64_t parts;          // items of a key head, each some keys of all query rows
  int64_t first_item;
};

struct Plan {
  std::vector<PlannedSequence> sequences;
  int64_t items;
  bool has_tiles;

  const PlannedSequence& sequence_of(int64_t item) const;
};

/// How a sequence is divided depends on its rows and positions alone.
Plan plan_attention(const AttentionParams& params);

/// The first row of a part of the keys.
int64_t begin_of_part(const PlannedSequence& sequence, int64_t part);

/// Least position that a row at `position` sees.
int32_t first_position_of(int32_t position, int64_t window);

}  // namespace fastmmoe
