// SPDX-License-Identifier: Apache-2.0
// FmmAttention: causal attention of packed rows over key-value caches that it extends in place. The kernels
// of CPU and CUDA take the same parameters. Letters: A of B sequences are in the call, T rows, C capacity, N
// query heads, K key heads, D width of a key, W width of a value.
#pragma once

#include <cstdint>

#include "attention/contract.h"
#include "common/half.h"

namespace fastmmoe {

struct AttentionAttributes {
  float scale;
  int64_t window;       // 0: none
  int64_t value_width;  // 0: values have tensors of their own
  bool has_sinks, writes_position_ids, has_lse;
};

/// Row-major arrays without gaps, in the memory of the processor that runs the kernel; the sizes are known on
/// the host. The caller has checked them and what is in the three arrays that say which row goes where. The
/// caches: past_* as the call finds them, present_* where they are after it, of one address or apart. Rows of
/// a cache that are not in use may hold anything, NaN too.
struct AttentionParams {
  AttentionAttributes attributes;
  FloatType type;        // of query, key, value, sink_logits and output
  FloatType cache_type;  // of the caches
  int64_t A, B, T, N, K, C, D, W;
  const void* query;                 // [T, N, D]
  const void* key;                   // [T, K, D]
  const void* value;                 // [T, K, W]; null with value_width
  const void* sink_logits;           // [N]; null without has_sinks
  const void* past_key;              // [B, K, C, D]
  const void* past_value;            // [B, K, C, W]; null with value_width
  const int32_t* past_lengths;       // [B]
  const int32_t* sequence_ids;       // [T]
  const int32_t* sequence_offsets;   // [A + 1] from 0 to T
  const int32_t* position_ids;       // [T]; null without a window
  const int32_t* past_position_ids;  // [B, C]; null without a window
  void* output;                      // [T, N, W]
  void* present_key;                 // as past_key
  void* present_value;               // as past_value
  int32_t* present_position_ids;     // as past_position_ids; null unless they are written
  float* lse;                        // [T, N]; null unless it is asked for
};

}  // namespace fastmmoe
