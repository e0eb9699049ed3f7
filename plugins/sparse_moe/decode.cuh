// SPDX-License-Identifier: Apache-2.0
// For few tokens, where reading weights is all the time: each row of an active expert's weights is read once,
// by one warp, for all tokens that use the expert. Tensor cores would not help.
#pragma once

#include "sparse_moe/route.cuh"
#include "sparse_moe/sort.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kDecodeTokens = 8;  // most tokens, and the rows of a tile: an expert has one tile
constexpr int kDecodeThreads = 256;
constexpr int kDecodeWarps = kDecodeThreads / kWarp;

/// A token for every warp of one block, which then sorts.
__global__ void __launch_bounds__(kDecodeThreads, 1)
    route_and_sort(const SparseMoeKernelParams params, const Workspace work) {
  static_assert(kDecodeWarps >= kDecodeTokens);
  __shared__ union {
    RouteShared route[kDecodeWarps];
    SortShared<kDecodeThreads> sort;
  } shared;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp < params.T) route_token(params, work, warp, shared.route[warp]);
  __syncthreads();
  sort_slots(work, static_cast<int>(params.E), shared.sort);
}

/// Called by a warp: the products of up to kDecodeTokens rows with two rows of weights; lane r gets those of
/// row r.
template <typename T>
__device__ float2 multiply_pair(const T* const (&rows)[kDecodeTokens], int count, const T* w0, const T* w1,
                                int depth) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sums[kDecodeTokens][2] = {};
#pragma unroll 2
  for (int d = lane * kVector; d < depth; d += kWarp * kVector) {
    float first[kVector], second[kVector], row[kVector];
    unpack<T>(__ldcs(reinterpret_cast<const uint4*>(w0 + d)), first);
    unpack<T>(__ldcs(reinterpret_cast<const uint4*>(w1 + d)), second);
#pragma unroll
    for (int r = 0; r < kDecodeTokens; ++r) {
      if (r >= count) continue;
      unpack<T>(*reinterpret_cast<const uint4*>(rows[r] + d), row);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        sums[r][0] += row[i] * first[i];
        sums[r][1] += row[i] * second[i];
      }
    }
  }
  float2 mine = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int r = 0; r < kDecodeTokens; ++r) {
    if (r >= count) continue;
    const float2 sum = make_float2(warp_sum(sums[r][0]), warp_sum(sums[r][1]));
    if (lane == r) mine = sum;
  }
  return mine;
}

/// The slot of row `lane` of a tile, or -1.
__device__ inline int slot_of_lane(const Workspace& work, int tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return lane < kDecodeTokens ? work.row_slot[tile * kDecodeTokens + lane] : -1;
}

/// activated, a column for each warp; blockIdx.x is the tile.
template <typename T>
__global__ void __launch_bounds__(kDecodeThreads)
    gate_up_few(const SparseMoeKernelParams params, const Workspace work) {
  const int tile = static_cast<int>(blockIdx.x), expert = work.tile_expert[tile];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = static_cast<int>(blockIdx.y) * kDecodeWarps + warp;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  if (expert < 0 || column >= I) return;
  const int slot = slot_of_lane(work, tile);
  const T* rows[kDecodeTokens];
#pragma unroll
  for (int r = 0; r < kDecodeTokens; ++r) {
    const int token = max(__shfl_sync(kAllLanes, slot, r), 0) / static_cast<int>(params.attributes.top_k);
    rows[r] = static_cast<const T*>(params.hidden_states) + int64_t{token} * H;
  }
  const int count = __popc(__ballot_sync(kAllLanes, slot >= 0));
  const int64_t gate_row = int64_t{expert} * 2 * I + column;
  const T* gate = static_cast<const T*>(params.gate_up) + gate_row * H;
  const float2 sums = multiply_pair(rows, count, gate, gate + int64_t{I} * H, H);
  if (lane >= count) return;
  const float value = activate(params.attributes, sums.x + bias_at<T>(params.gate_up_bias, gate_row),
                               sums.y + bias_at<T>(params.gate_up_bias, gate_row + I));
  T* activated = static_cast<T*>(work.activated);
  activated[int64_t{tile * kDecodeTokens + lane} * I + column] = Element<T>::from_float(value);
}

/// output, two columns of all tokens for each warp: experts are added in ascending order without a place to
/// wait in.
template <typename T>
__global__ void __launch_bounds__(kDecodeThreads)
    down_few(const SparseMoeKernelParams params, const Workspace work) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = (static_cast<int>(blockIdx.x) * kDecodeWarps + warp) * 2;
  const int H = static_cast<int>(params.H), I = static_cast<int>(params.I);
  if (column >= H) return;
  float2 output = make_float2(0.0f, 0.0f);  // of token `lane`
  for (int tile = 0; tile < work.max_tiles && work.tile_expert[tile] >= 0; ++tile) {
    const int slot = slot_of_lane(work, tile);
    const T* rows[kDecodeTokens];
#pragma unroll
    for (int r = 0; r < kDecodeTokens; ++r) {
      rows[r] = static_cast<const T*>(work.activated) + int64_t{tile * kDecodeTokens + r} * I;
    }
    const int count = __popc(__ballot_sync(kAllLanes, slot >= 0));
    const int64_t row = int64_t{work.tile_expert[tile]} * H + column;
    const T* weights = static_cast<const T*>(params.down) + row * I;
    const float2 sums = multiply_pair(rows, count, weights, weights + I, I);
    const float weight = slot >= 0 ? work.weights[slot] : 0.0f;
    const float first = weight * (sums.x + bias_at<T>(params.down_bias, row));
    const float second = weight * (sums.y + bias_at<T>(params.down_bias, row + 1));
    for (int r = 0; r < count; ++r) {
      const int token = __shfl_sync(kAllLanes, slot, r) / static_cast<int>(params.attributes.top_k);
      const float2 added = make_float2(__shfl_sync(kAllLanes, first, r), __shfl_sync(kAllLanes, second, r));
      if (lane != token) continue;
      output.x += added.x;
      output.y += added.y;
    }
  }
  if (lane < params.T)
    store_pair(static_cast<T*>(params.output) + int64_t{lane} * H + column, output.x, output.y);
}

}  // namespace fastmmoe::sparse_moe
