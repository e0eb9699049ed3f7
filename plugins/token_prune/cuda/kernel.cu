// SPDX-License-Identifier: Apache-2.0
// Three kernels. Scoring is spread over the device. Choosing is one block for a sequence: its V is at most
// some thousand tokens, so counting them costs less than the launches and the barriers across blocks that
// several blocks would need. The rows, nearly all of the bytes, are moved by the whole device again.
//
// Scoring and choosing see one sequence at a time, as if it were alone, so that it is pruned to the same bits
// in any request. Nothing depends on the grid: work is cut into chunks of fixed size, each is summed in a
// fixed order, and atomics only count integers. As on the CPU, what a choice depends on is summed in double
// and rounded to float before it is compared, so that both kernels choose alike. For 1000 tokens of 128
// experts that is about a million operations, an estimated 30 us on 16 multiprocessors with two units for
// double each.
#include <algorithm>
#include <limits>

#include "common/check.h"
#include "common/cuda/launch.h"
#include "common/divide.h"
#include "token_prune/cuda/gather.cuh"
#include "token_prune/cuda/kernel.h"
#include "token_prune/cuda/select.cuh"
#include "token_prune/cuda/sequence.cuh"

namespace fastmmoe {
namespace {

using namespace token_prune;

constexpr int kScoreThreads = 256;
constexpr int kChooseThreads = 512;
constexpr int kColumnsPerLane = static_cast<int>(kTokenPruneMaxExperts) / kWarp;

struct Workspace {
  double* column_sums;     // [chunks, E] of the cleaned rows of routing_probs
  uint64_t* keys;          // [V] of the choice that is being made
  float* attention;        // [V] cleaned
  uint32_t* token_order;   // [V] attention as order_bits; 0 for a cleaned token
  float* redundancy;       // [V] of the window that starts at the token
  float* importance;       // [V] likewise, not yet divided by the greatest
  int32_t* window_first;   // [V] first token of the token's window, counted from its sequence's first
  int32_t* window_length;  // [V] of the window that starts here, else 0; in the end only if merged
  int32_t* survivor_rank;  // [V + 1] survivors of all sequences before the token
};

unsigned blocks_for(int64_t items, int max_blocks) {
  return static_cast<unsigned>(std::min<int64_t>(items, max_blocks));
}

// Every sequence but one may add a chunk that is not full.
int64_t most_chunks(int64_t B, int64_t V) { return divide_up(V, kChunk) + B - 1; }

// The greatest alignment first, so that there are no gaps.
Workspace carve(void* workspace, int64_t B, int64_t V, int64_t E) {
  Workspace parts{};
  parts.column_sums = static_cast<double*>(workspace);
  parts.keys = reinterpret_cast<uint64_t*>(parts.column_sums + most_chunks(B, V) * E);
  parts.attention = reinterpret_cast<float*>(parts.keys + V);
  parts.token_order = reinterpret_cast<uint32_t*>(parts.attention + V);
  parts.redundancy = reinterpret_cast<float*>(parts.token_order + V);
  parts.importance = parts.redundancy + V;
  parts.window_first = reinterpret_cast<int32_t*>(parts.importance + V);
  parts.window_length = parts.window_first + V;
  parts.survivor_rank = parts.window_length + V;
  return parts;
}

__device__ Workspace workspace_of(const Sequence& sequence, Workspace work, int64_t E) {
  const int begin = sequence.visual.begin;
  work.column_sums += sequence.chunks.begin * E;
  work.keys += begin;
  work.attention += begin;
  work.token_order += begin;
  work.redundancy += begin;
  work.importance += begin;
  work.window_first += begin;
  work.window_length += begin;
  work.survivor_rank += begin;
  return work;
}

// One row of routing_probs in a warp: lane l has columns l, l + 32, ... A row with a value that is not finite
// becomes zeros. Returns whether it was finite.
__device__ bool load_row(const TokenPruneParams& params, int token, float (&values)[kColumnsPerLane]) {
  const float* row = params.routing_probs + token * params.E;
  bool is_finite = true;
#pragma unroll
  for (int c = 0; c < kColumnsPerLane; ++c) {
    const int column = c * kWarp + lane();
    values[c] = column < params.E ? row[column] : 0.0f;
    is_finite = is_finite && std::isfinite(values[c]);
  }
  if (__all_sync(kAllLanes, is_finite)) return true;
#pragma unroll
  for (float& value : values) value = 0.0f;
  return false;
}

// Called by a warp: mean cosine of a window's rows with their mean; a short window is filled up with
// mean_of_all.
__device__ float redundancy(const TokenPruneParams& params, int first, int length, const float* mean_of_all) {
  if (length == 1) return 0.0f;
  const int window = static_cast<int>(params.attributes.window), E = static_cast<int>(params.E);
  float row[kColumnsPerLane], mean[kColumnsPerLane];
  double sums[kColumnsPerLane] = {};
  for (int i = first; i < first + length; ++i) {
    load_row(params, i, row);
#pragma unroll
    for (int c = 0; c < kColumnsPerLane && c * kWarp < E; ++c) sums[c] += row[c];
  }
  double mean_square = 0.0;
#pragma unroll
  for (int c = 0; c < kColumnsPerLane; ++c) {
    const int column = c * kWarp + lane();
    mean[c] = 0.0f;
    if (column >= E) continue;
    for (int i = length; i < window; ++i) sums[c] += mean_of_all[column];
    mean[c] = static_cast<float>(sums[c] / window);
    mean_square += static_cast<double>(mean[c]) * mean[c];
  }
  mean_square = warp_sum(mean_square);
  double sum = 0.0;
  for (int i = first; i < first + length; ++i) {
    load_row(params, i, row);
    double square = 0.0, dot = 0.0;
#pragma unroll
    for (int c = 0; c < kColumnsPerLane && c * kWarp < E; ++c) {
      square += static_cast<double>(row[c]) * row[c];
      dot += static_cast<double>(row[c]) * mean[c];
    }
    sum += warp_sum(dot) / fmax(sqrt(warp_sum(square) * mean_square), kCosineFloor);
  }
  return static_cast<float>(sum / length);
}

// Writes the first token of the token's window and returns how many tokens start a window here, or 0.
// visual_index[i] - i ascends and is constant within a run, which is how runs are found without a scan.
__device__ int find_window(const TokenPruneParams& params, const Workspace& work, int token) {
  const int window = static_cast<int>(params.attributes.window);
  const auto gaps_before = [&](int i) { return params.visual_index[i] - i; };
  const int gaps = gaps_before(token);
  const int place = (token - first_at_least(token, gaps, gaps_before)) % window;
  int length = 0;
  if (place == 0) {
    while (length < window && token + length < params.V && gaps_before(token + length) == gaps) ++length;
  }
  work.window_first[token] = token - place;
  work.window_length[token] = length;
  return length;
}

struct ScoreShared {
  bool is_finite[kChunk];
  int length[kChunk];
};

// Windows, clean-up, sums of columns, redundancy of whole windows.
__device__ void score_chunk(const TokenPruneParams& params, const Workspace& work, int chunk,
                            ScoreShared& shared) {
  const int V = static_cast<int>(params.V), E = static_cast<int>(params.E);
  const int first = chunk * kChunk;
  const int count = V - first < kChunk ? V - first : kChunk;
  if (warp() == 0 && lane() < count) shared.length[lane()] = find_window(params, work, first + lane());
  for (int i = warp(); i < count; i += kScoreThreads / kWarp) {
    float row[kColumnsPerLane];
    const bool row_is_finite = load_row(params, first + i, row);
    if (lane() > 0) continue;
    const float attention = params.attention[first + i];
    const float cleaned = row_is_finite && std::isfinite(attention) ? attention : 0.0f;
    shared.is_finite[i] = row_is_finite;
    work.attention[first + i] = cleaned;
    work.token_order[first + i] = row_is_finite ? order_bits(cleaned) : 0;
  }
  __syncthreads();
  for (int column = thread(); column < E; column += kScoreThreads) {
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      if (shared.is_finite[i]) sum += params.routing_probs[(first + i) * params.E + column];
    }
    work.column_sums[chunk * params.E + column] = sum;
  }
  for (int i = warp(); i < count; i += kScoreThreads / kWarp) {
    if (shared.length[i] != 1 && shared.length[i] != params.attributes.window) continue;
    const float value = redundancy(params, first + i, shared.length[i], nullptr);
    if (lane() == 0) work.redundancy[first + i] = value;
  }
  __syncthreads();
}

// Grid: chunks, block b scores b, b + gridDim.x, ... Block: a warp reads rows of routing_probs, a thread adds
// columns.
__global__ void __launch_bounds__(kScoreThreads, 2)
    score_tokens(const TokenPruneParams params, const Workspace work, const int most_chunks) {
  __shared__ ScoreShared shared;
  for (int chunk = static_cast<int>(blockIdx.x); chunk < most_chunks; chunk += static_cast<int>(gridDim.x)) {
    const Sequence sequence = sequence_of_chunk(params, chunk);
    if (chunk >= sequence.chunks.end) return;
    score_chunk(params_of(sequence, params), workspace_of(sequence, work, params.E),
                chunk - sequence.chunks.begin, shared);
  }
}

struct ChooseShared {
  SelectShared select;
  int warp_counts[kChooseThreads / kWarp];
  float warp_greatest[kChooseThreads / kWarp];
  float mean_of_all[kTokenPruneMaxExperts];
};

// Redundancy of the windows that are filled up: few, unless images are tiny, so the mean of all rows is only
// needed in this block. The barrier of score_importance shows it to the others.
__device__ void score_short_windows(const TokenPruneParams& params, const Workspace& work, int chunks,
                                    ChooseShared& shared) {
  const int V = static_cast<int>(params.V);
  const auto is_short = [&](int i) {
    return i < V && 1 < work.window_length[i] && work.window_length[i] < params.attributes.window;
  };
  bool any = false;
  for (int i = thread(); i < V; i += kChooseThreads) any = any || is_short(i);
  if (!__syncthreads_or(any)) return;
  for (int column = thread(); column < params.E; column += kChooseThreads) {
    double sum = 0.0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += work.column_sums[chunk * params.E + column];
    shared.mean_of_all[column] = static_cast<float>(sum / V);
  }
  __syncthreads();
  for (int base = thread() - lane(); base < V; base += kChooseThreads) {
    for (unsigned rest = __ballot_sync(kAllLanes, is_short(base + lane())); rest != 0; rest &= rest - 1) {
      const int first = base + __ffs(static_cast<int>(rest)) - 1;
      const float value = redundancy(params, first, work.window_length[first], shared.mean_of_all);
      if (lane() == 0) work.redundancy[first] = value;
    }
  }
}

// Writes the importance of every window, a thread those at i % kChooseThreads. Every thread gets the
// greatest.
__device__ float score_importance(const TokenPruneParams& params, const Workspace& work,
                                  ChooseShared& shared) {
  float greatest = -INFINITY;
  for (int i = thread(); i < params.V; i += kChooseThreads) {
    const int length = work.window_length[i];
    if (length == 0) continue;
    double sum = 0.0;
    for (int j = 0; j < length; ++j) sum += work.attention[i + j];
    work.importance[i] = static_cast<float>(sum) / static_cast<float>(length);
    greatest = fmaxf(greatest, work.importance[i]);
  }
  greatest = warp_max(greatest);
  if (lane() == 0) shared.warp_greatest[warp()] = greatest;
  __syncthreads();
  for (const float value : shared.warp_greatest) greatest = fmaxf(greatest, value);
  return greatest;
}

// Not fused into fewer operations: the scores are those of the CPU.
__device__ float score(float alpha, float redundancy, float importance) {
  return __fsub_rn(__fmul_rn(alpha, redundancy), __fmul_rn(1.0f - alpha, importance));
}

// Leaves window_length only where a window is merged.
__device__ void choose_windows(const TokenPruneParams& params, const Workspace& work, float greatest,
                               SelectShared& shared) {
  const int V = static_cast<int>(params.V);
  for (int i = thread(); i < V; i += kChooseThreads) {
    work.keys[i] = 0;
    if (work.window_length[i] == 0) continue;
    const float importance = work.importance[i] / (greatest + kImportanceFloor);
    work.keys[i] = make_key(order_bits(score(*params.alpha, work.redundancy[i], importance)), i, V);
  }
  const uint64_t least =
      params.M == 0 ? kNoKey : nth_greatest(work.keys, V, static_cast<unsigned>(params.M), shared);
  for (int i = thread(); i < V; i += kChooseThreads) {
    if (work.keys[i] < least) work.window_length[i] = 0;
  }
  __syncthreads();
}

// Writes survivor_rank, which goes on from `before`: the merged windows' first tokens and the K - M best of
// the tokens outside them survive.
__device__ void choose_tokens(const TokenPruneParams& params, const Workspace& work, int before,
                              ChooseShared& shared) {
  const int V = static_cast<int>(params.V), singles = static_cast<int>(params.K - params.M);
  for (int i = thread(); i < V; i += kChooseThreads) {
    const bool is_merged = work.window_length[work.window_first[i]] > 0;
    work.keys[i] = is_merged ? 0 : make_key(work.token_order[i], i, V);
  }
  const uint64_t least =
      singles == 0 ? kNoKey : nth_greatest(work.keys, V, static_cast<unsigned>(singles), shared.select);
  for (int base = 0; base < V; base += kChooseThreads) {
    const int i = base + thread();
    const bool survives = i < V && (work.keys[i] >= least || work.window_length[i] > 0);
    int total;
    const int rank = before + rank_in_block(survives, total, shared.warp_counts);
    if (i < V) work.survivor_rank[i] = rank;
    before += total;
  }
}

__device__ void keep_all(const TokenPruneParams& params, const Workspace& work, int before) {
  for (int i = thread(); i < params.V; i += kChooseThreads) {
    work.window_length[i] = 0;
    work.survivor_rank[i] = before + i;
  }
}

// Grid: sequences, block b chooses for b, b + gridDim.x, ... Block: a thread has every kChooseThreads-th
// token.
__global__ void __launch_bounds__(kChooseThreads, 1)
    choose_survivors(const TokenPruneParams params, const Workspace work) {
  __shared__ ChooseShared shared;
  for (int b = static_cast<int>(blockIdx.x); b < params.B; b += static_cast<int>(gridDim.x)) {
    const Sequence sequence = sequence_at(params, b);
    const TokenPruneParams alone = params_of(sequence, params);
    const Workspace part = workspace_of(sequence, work, params.E);
    if (b + 1 == params.B && thread() == 0) work.survivor_rank[params.V] = sequence.kept.end;
    if (alone.K >= alone.V) {
      keep_all(alone, part, sequence.kept.begin);
      continue;
    }
    score_short_windows(alone, part, sequence.chunks.size(), shared);
    const float greatest = score_importance(alone, part, shared);
    choose_windows(alone, part, greatest, shared.select);
    choose_tokens(alone, part, sequence.kept.begin, shared);
  }
}

// Copies move 16 bytes at a time where rows and buffers are multiples of it.
template <typename T>
void launch_gather(const TokenPruneParams& params, const Choice& choice, int max_blocks,
                   cudaStream_t stream) {
  const auto is_aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  const bool is_wide = params.H * static_cast<int64_t>(sizeof(T)) % 16 == 0 && is_aligned(params.residual) &&
                       is_aligned(params.hidden_states) && is_aligned(params.residual_out) &&
                       is_aligned(params.hidden_states_out);
  const LaunchConfig config{blocks_for(divide_up(params.T, kGatherWarps), max_blocks), kGatherThreads};
  if (is_wide) {
    LAUNCH_KERNEL((gather_rows<T, uint4>), config, stream, params, choice);
  } else {
    LAUNCH_KERNEL((gather_rows<T, T>), config, stream, params, choice);
  }
}

void check_sizes(const TokenPruneParams& params) {
  CHECK(params.E <= kTokenPruneMaxExperts, "FmmTokenPrune: E is ", params.E, ", expected at most ",
        kTokenPruneMaxExperts, " experts on CUDA");
  CHECK(params.T <= std::numeric_limits<int32_t>::max(), "FmmTokenPrune: T is ", params.T,
        ", expected less than 2^31 tokens");
}

}  // namespace

size_t token_prune_workspace_bytes(int64_t B, int64_t V, int64_t E) {
  const int64_t per_chunk = E * static_cast<int64_t>(sizeof(double));
  constexpr int64_t kPerToken = sizeof(uint64_t) + 7 * sizeof(int32_t);
  return static_cast<size_t>(most_chunks(B, V) * per_chunk + V * kPerToken) + sizeof(int32_t);
}

void launch_token_prune(const TokenPruneParams& params, void* workspace, cudaStream_t stream,
                        int max_blocks) {
  check_sizes(params);
  if (params.T == 0) return;
  Workspace work{};
  if (params.K < params.V) {
    work = carve(workspace, params.B, params.V, params.E);
    const int chunks = static_cast<int>(most_chunks(params.B, params.V));
    const LaunchConfig scoring{blocks_for(chunks, max_blocks), kScoreThreads};
    LAUNCH_KERNEL(score_tokens, scoring, stream, params, work, chunks);
    const LaunchConfig choosing{blocks_for(params.B, max_blocks), kChooseThreads};
    LAUNCH_KERNEL(choose_survivors, choosing, stream, params, work);
  }
  const Choice choice{work.window_length, work.survivor_rank};
  switch (params.type) {
    case FloatType::kFloat:
      return launch_gather<float>(params, choice, max_blocks, stream);
    case FloatType::kFloat16:
      return launch_gather<__half>(params, choice, max_blocks, stream);
    case FloatType::kBfloat16:
      return launch_gather<__nv_bfloat16>(params, choice, max_blocks, stream);
  }
}

}  // namespace fastmmoe
