// SPDX-License-Identifier: Apache-2.0
// Attention of a few query rows over a range of key rows: the part that is compiled for each instruction set.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fastmmoe {

constexpr int64_t kRowsPerTile = 64;   // query rows of one call
constexpr int64_t kKeysPerTile = 128;  // key rows that share one update of the softmax
constexpr int64_t kKeysPerPart = 512;  // key rows of a work item where few query rows leave few items
constexpr int64_t kFewRows = 16;       // so many rows have vectors along D, more have vectors along rows
constexpr int64_t kMostLanes = 16;     // scratch is padded to whole vectors

// Static, as is all that several instruction sets compile: a linker must not pick one of them.
static inline int64_t padded(int64_t width) { return (width + kMostLanes - 1) / kMostLanes * kMostLanes; }

/// Working memory of a call and its result, each array starting at 64 bytes.
struct AttendScratch {
  float* query;     // [kRowsPerTile, padded(D)]
  float* keys;      // [kKeysPerTile, padded(D)]
  float* values;    // [kKeysPerTile, padded(W)]
  float* scores;    // [kKeysPerTile, kRowsPerTile], or [kFewRows, kKeysPerPart]
  float* greatest;  // [kRowsPerTile]: greatest score, in units of log 2
  float* total;     // [kRowsPerTile]: sum of the weights 2^(score - greatest)
  float* output;    // [kRowsPerTile, padded(W)]: weighted sum of the values
};

/// Query rows are ordered by the last key that they see. A row sees a key at or after `begin` and before its
/// own `end` if the key's position is in its interval.
struct AttendBlock {
  int64_t rows, D, W;
  const float* const* query;  // [rows] pointers to [D]
  FloatType cache_type;       // of keys and values; not float16
  const void* keys;           // [.., D], from key row 0
  const void* values;         // [.., W] with a row every value_stride; may be the keys
  int64_t value_stride;
  int64_t begin, end;             // key rows, all of which have values
  const int32_t* row_end;         // [rows], ascending
  bool has_positions;             // else all of them are in every interval
  const int32_t* first_position;  // [rows]: least position that the row sees
  const int32_t* last_position;   // [rows]: greatest
  const int32_t* old_positions;   // of the key rows before `old_rows`
  int64_t old_rows;
  const int32_t* new_positions;  // of those from it on
  float scale;                   // with log2(e) in it
  AttendScratch scratch;
};

/// Writes greatest, total and output of the scratch. What a row gets depends on the row, the keys and `begin`
/// alone. A row without a visible key gets total 0.
using AttendFunction = void (*)(const AttendBlock&);

/// to [count] bfloat16, rounded to nearest, ties to even.
using RoundFunction = void (*)(const float* from, int64_t count, Bfloat16* to);

struct AttendFunctions {
  AttendFunction few_rows;  // at most kFewRows rows and kKeysPerPart keys
  AttendFunction many_rows;
  RoundFunction round;
};

/// The variant for this processor.
AttendFunctions attend_for_this_cpu();

}  // namespace fastmmoe
