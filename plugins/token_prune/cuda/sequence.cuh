// SPDX-License-Identifier: Apache-2.0
// The sequences of a request. They are few, so whoever needs one walks over the offsets. TensorRT times
// plugins on memory that holds anything: an offset below the one before it or beyond the end is moved there,
// the first counts as 0 and the last as the end. So the sequences always share out all tokens, each to one.
#pragma once

#include <cstdint>

#include "common/cuda/device.cuh"
#include "token_prune/params.h"

namespace fastmmoe::token_prune {

/// Visual tokens that a block scores at a time; one lane finds the window of one token. Chunks are cut from
/// the start of each sequence: sums over them do not depend on what else is in the request.
constexpr int kChunk = kWarp;

struct Part {
  int begin, end;
  __device__ int size() const { return end - begin; }
};

/// What a sequence owns of V, K, M and all chunks.
struct Sequence {
  Part visual, kept, merged, chunks;
};

/// Sequence b, which comes after `previous`; the one before the first is all zeros.
__device__ inline Sequence next_sequence(const TokenPruneParams& params, int b, const Sequence& previous) {
  const bool is_last = b + 1 == params.B;
  const auto part = [&](const int32_t* offsets, int64_t total, const Part& before) {
    const int end = static_cast<int>(total);
    return Part{before.end, is_last ? end : min(max(offsets[b + 1], before.end), end)};
  };
  Sequence next{};
  next.visual = part(params.visual_offsets, params.V, previous.visual);
  next.kept = part(params.keep_offsets, params.K, previous.kept);
  next.merged = part(params.merge_offsets, params.M, previous.merged);
  const int chunks = (next.visual.size() + kChunk - 1) / kChunk;
  next.chunks = {previous.chunks.end, previous.chunks.end + chunks};
  return next;
}

/// Sequence b.
__device__ inline Sequence sequence_at(const TokenPruneParams& params, int b) {
  Sequence sequence{};
  for (int i = 0; i <= b; ++i) sequence = next_sequence(params, i, sequence);
  return sequence;
}

/// The sequence that owns the chunk; the last one where none does.
__device__ inline Sequence sequence_of_chunk(const TokenPruneParams& params, int chunk) {
  Sequence sequence{};
  for (int b = 0; b < params.B && chunk >= sequence.chunks.end; ++b) {
    sequence = next_sequence(params, b, sequence);
  }
  return sequence;
}

/// What scoring and choosing read of a request that is this sequence alone.
__device__ inline TokenPruneParams params_of(const Sequence& sequence, const TokenPruneParams& params) {
  TokenPruneParams alone = params;
  alone.V = sequence.visual.size();
  alone.K = sequence.kept.size();
  alone.M = min(sequence.merged.size(), sequence.kept.size());
  alone.routing_probs += sequence.visual.begin * params.E;
  alone.attention += sequence.visual.begin;
  alone.visual_index += sequence.visual.begin;
  return alone;
}

}  // namespace fastmmoe::token_prune
