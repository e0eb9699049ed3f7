// SPDX-License-Identifier: Apache-2.0
// Moves and merges the rows once it is known what survives.
#pragma once

#include <cstdint>

#include "common/cuda/device.cuh"
#include "token_prune/params.h"

namespace fastmmoe::token_prune {

constexpr int kGatherThreads = 256;
constexpr int kGatherWarps = kGatherThreads / kWarp;

/// What survives; not read where K = V.
struct Choice {
  const int32_t* window_length;  // [V] of the merged window that starts at the token, else 0
  const int32_t* survivor_rank;  // [V + 1] survivors before the token
};

// Where a source row goes. out -1: nowhere; merged_length 0: it is copied.
struct Destination {
  int out, merged_length;
};

struct MergeShared {
  double square[kGatherWarps];
  float greatest[kGatherWarps];
};

// Also writes the row's place in kept_index and visual_index_out. TensorRT times plugins on memory that holds
// anything, so a visual_index that is no ascending list of rows must not lead outside of the arrays.
__device__ inline Destination place_row(const TokenPruneParams& params, const Choice& choice, int row) {
  const int V = static_cast<int>(params.V);
  const int token = first_at_least(V, row, [&](int i) { return params.visual_index[i]; });
  const bool is_visual = token < V && params.visual_index[token] == row;
  const bool keeps_all = params.K == params.V;
  const int rank = keeps_all ? token : choice.survivor_rank[token];
  if (is_visual && !keeps_all && choice.survivor_rank[token + 1] == rank) return {-1, 0};
  const int out = row - token + rank;
  if (out < 0 || out >= params.T - params.V + params.K) return {-1, 0};
  params.kept_index[out] = row;
  if (is_visual && rank < params.K) params.visual_index_out[rank] = out;
  const int merged_length = is_visual && !keeps_all ? choice.window_length[token] : 0;
  return {out, min(merged_length, static_cast<int>(params.T) - row)};
}

// Called by a warp; Unit is as wide as size and alignment of the rows allow.
template <typename Unit>
__device__ void copy_row(const void* from, void* to, int64_t from_row, int64_t to_row, int64_t units) {
  const Unit* source = static_cast<const Unit*>(from) + from_row * units;
  Unit* target = static_cast<Unit*>(to) + to_row * units;
  for (int64_t i = lane(); i < units; i += kWarp) target[i] = source[i];
}

template <typename T>
__device__ float mean_of_column(const T* rows, int length, int64_t H, int64_t column) {
  double sum = 0.0;
  for (int i = 0; i < length; ++i) sum += to_float(rows[i * H + column]);
  return static_cast<float>(sum / length);
}

// Called by the block, all rows of the window for one row of the output. A norm that is NaN makes the row
// NaN.
template <typename T>
__device__ void merge_rows(const TokenPruneParams& params, const void* states, void* states_out, int row,
                           Destination destination, MergeShared& shared) {
  const int64_t H = params.H;
  const int length = destination.merged_length;
  const T* rows = static_cast<const T*>(states) + row * H;
  T* out = static_cast<T*>(states_out) + destination.out * H;
  float divisor = 1.0f, greatest = 1.0f;
  if (params.attributes.merge == Merge::kMlerp) {
    double square = 0.0;
    for (int64_t j = thread(); j < H; j += kGatherThreads) {
      const double mean = mean_of_column(rows, length, H, j);
      square += mean * mean;
    }
    square = warp_sum(square);
    greatest = 0.0f;
    for (int i = warp(); i < length; i += kGatherWarps) {
      double row_square = 0.0;
      for (int64_t j = lane(); j < H; j += kWarp) {
        const double value = to_float(rows[i * H + j]);
        row_square += value * value;
      }
      greatest = fmaxf(greatest, static_cast<float>(sqrt(warp_sum(row_square))));
    }
    if (lane() == 0) {
      shared.square[warp()] = square;
      shared.greatest[warp()] = greatest;
    }
    __syncthreads();
    square = 0.0;
    for (int w = 0; w < kGatherWarps; ++w) {
      square += shared.square[w];
      greatest = fmaxf(greatest, shared.greatest[w]);
    }
    const float norm = static_cast<float>(sqrt(square));
    divisor = norm < kNormFloor ? kNormFloor : norm;
    __syncthreads();
  }
  for (int64_t j = thread(); j < H; j += kGatherThreads) {
    out[j] = from_float<T>(mean_of_column(rows, length, H, j) / divisor * greatest);
  }
}

// Unit: what copies move, T: the element type.
// Grid: groups of kGatherWarps source rows, block b takes b, b + gridDim.x, ... Block: a warp copies a row;
// rows that are merged take the whole block.
template <typename T, typename Unit>
__global__ void __launch_bounds__(kGatherThreads)
    gather_rows(const TokenPruneParams params, const Choice choice) {
  __shared__ Destination destinations[kGatherWarps];
  __shared__ MergeShared shared;
  const int64_t units = params.H * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(Unit));
  for (int64_t first = int64_t{blockIdx.x} * kGatherWarps; first < params.T;
       first += int64_t{gridDim.x} * kGatherWarps) {
    if (thread() < kGatherWarps && first + thread() < params.T) {
      destinations[thread()] = place_row(params, choice, static_cast<int>(first + thread()));
    }
    __syncthreads();
    const int64_t rest = params.T - first;
    const int count = rest < kGatherWarps ? static_cast<int>(rest) : kGatherWarps;
    if (warp() < count && destinations[warp()].out >= 0 && destinations[warp()].merged_length == 0) {
      const int64_t out = destinations[warp()].out;
      copy_row<Unit>(params.hidden_states, params.hidden_states_out, first + warp(), out, units);
      copy_row<Unit>(params.residual, params.residual_out, first + warp(), out, units);
    }
    for (int i = 0; i < count; ++i) {
      if (destinations[i].merged_length == 0) continue;
      const int row = static_cast<int>(first + i);
      merge_rows<T>(params, params.hidden_states, params.hidden_states_out, row, destinations[i], shared);
      merge_rows<T>(params, params.residual, params.residual_out, row, destinations[i], shared);
    }
    __syncthreads();
  }
}

}  // namespace fastmmoe::token_prune
