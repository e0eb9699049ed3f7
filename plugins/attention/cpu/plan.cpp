// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/plan.h"

#include <algorithm>
#include <limits>

#include "attention/cpu/attend.h"
#include "common/divide.h"

namespace fastmmoe {

namespace {

// The first cached row that a row of the call sees, or `past`, which the first of them sees. Positions need
// not ascend.
int64_t first_seen(const AttentionParams& params, const PlannedSequence& sequence) {
  if (params.attributes.window == 0) return 0;
  const int32_t* own = params.position_ids + sequence.first;
  const int32_t* old = params.past_position_ids + sequence.cache * params.C;
  const int32_t least = *std::min_element(own, own + sequence.length);
  const int32_t first = first_position_of(least, params.attributes.window);
  return std::find_if(old, old + sequence.past, [first](int32_t position) { return position >= first; }) -
         old;
}

}  // namespace

int32_t first_position_of(int32_t position, int64_t window) {
  const int64_t first = int64_t{position} - window + 1;
  return static_cast<int32_t>(std::max<int64_t>(first, std::numeric_limits<int32_t>::min()));
}

int64_t begin_of_part(const PlannedSequence& sequence, int64_t part) {
  return part == 0 ? sequence.begin : (sequence.begin / kKeysPerPart + part) * kKeysPerPart;
}

const PlannedSequence& Plan::sequence_of(int64_t item) const {
  const auto next = std::upper_bound(sequences.begin(), sequences.end(), item,
                                     [](int64_t i, const PlannedSequence& s) { return i < s.first_item; });
  return *(next - 1);
}

Plan plan_attention(const AttentionParams& params) {
  Plan plan{{}, 0, false};
  plan.sequences.reserve(static_cast<size_t>(params.A));
  for (int64_t a = 0; a < params.A; ++a) {
    PlannedSequence sequence{};
    sequence.first = params.sequence_offsets[a];
    sequence.length = params.sequence_offsets[a + 1] - sequence.first;
    sequence.cache = params.sequence_ids[sequence.first];
    sequence.past = params.past_lengths[sequence.cache];
    sequence.begin = first_seen(params, sequence) / kKeysPerTile * kKeysPerTile;
    const int64_t rows = sequence.length * (params.N / params.K), used = sequence.past + sequence.length;
    if (rows > kRowsPerTile) {
      sequence.tiles = divide_up(rows, kRowsPerTile);
      plan.has_tiles = true;
    } else {
      sequence.parts = divide_up(used, kKeysPerPart) - sequence.begin / kKeysPerPart;
    }
    sequence.first_item = plan.items;
    plan.items += params.K * (sequence.tiles + sequence.parts);
    plan.sequences.push_back(sequence);
  }
  return plan;
}

}  // namespace fastmmoe
