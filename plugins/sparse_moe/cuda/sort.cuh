// SPDX-License-Identifier: Apache-2.0
// Counting sort of the slots by expert, in one block: a few integers a slot are too little work to pay for
// kernels that wait for each other. Every warp counts a stretch of slots, so that ranks need no atomics and
// rows of an expert ascend by token.
#pragma once

#include "sparse_moe/cuda/device.cuh"
#include "sparse_moe/cuda/route.cuh"

namespace fastmmoe::sparse_moe {

constexpr int kSortThreads = 512;

template <int kThreads>
struct SortShared {
  int counts[kThreads / kWarp][kMaxExperts];  // of a warp's slots; then the row of the warp's next slot
  int totals[kMaxExperts];
  int first_tile[kMaxExperts];
  int tiles;
};

/// Calls visit(slot, expert, rank, peers) for a warp's slots: rank of peers slots with this expert of the 32
/// that are looked at together. Slots not in use, and lanes beyond the last slot, have expert -1.
template <typename Visit>
__device__ void for_each_slot(const Workspace& work, int warps, const Visit& visit) {
  const int steps = (work.slots + kWarp * warps - 1) / (kWarp * warps);
  const int first = warp() * steps * kWarp;
  const int end = min(first + steps * kWarp, work.slots);
  for (int base = first; base < end; base += kWarp) {
    const int slot = base + lane();
    const int expert = slot < end ? work.experts[slot] : -1;
    const unsigned peers = __match_any_sync(kAllLanes, expert);
    visit(slot, expert, __popc(peers & ((1u << lane()) - 1)), __popc(peers));
  }
}

/// Called by one warp: sets first_tile and tiles from totals.
template <int kThreads>
__device__ void place_tiles(int E, int tile_rows, SortShared<kThreads>& shared) {
  constexpr int kPerLane = kMaxExperts / kWarp;
  int counts[kPerLane], sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane() * kPerLane + i;
    counts[i] = e < E ? (shared.totals[e] + tile_rows - 1) / tile_rows : 0;
    sum += counts[i];
  }
  int before = sum;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane() >= distance) before += other;
  }
  if (lane() == kWarp - 1) shared.tiles = before;
  before -= sum;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    shared.first_tile[lane() * kPerLane + i] = before;
    before += counts[i];
  }
}

/// Writes the tiles of one expert, and -1 for the rows that fill up its last one.
template <int kThreads>
__device__ void open_tiles(const Workspace& work, int expert, SortShared<kThreads>& shared) {
  const int first = shared.first_tile[expert], rows = shared.totals[expert];
  const int tiles = (rows + work.tile_rows - 1) / work.tile_rows;
  for (int tile = first; tile < first + tiles; ++tile) work.tile_expert[tile] = expert;
  const int first_row = first * work.tile_rows;
  for (int row = rows; row < tiles * work.tile_rows; ++row) work.row_slot[first_row + row] = -1;
  for (int w = 0; w < kThreads / kWarp; ++w) shared.counts[w][expert] += first_row;
}

/// Called by the block, kThreads >= kMaxExperts: writes slot_row, row_slot and tile_expert.
template <int kThreads>
__device__ void sort_slots(const Workspace& work, int E, SortShared<kThreads>& shared) {
  static_assert(kThreads >= kMaxExperts, "a thread for every expert");
  constexpr int kWarps = kThreads / kWarp;
  for (int i = thread(); i < kWarps * kMaxExperts; i += kThreads)
    shared.counts[i / kMaxExperts][i % kMaxExperts] = 0;
  __syncthreads();
  for_each_slot(work, kWarps, [&](int, int expert, int rank, int peers) {
    if (expert >= 0 && rank == 0) shared.counts[warp()][expert] += peers;
    __syncwarp();
  });
  __syncthreads();
  if (thread() < E) {
    int total = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int count = shared.counts[w][thread()];
      shared.counts[w][thread()] = total;
      total += count;
    }
    shared.totals[thread()] = total;
  }
  __syncthreads();
  if (warp() == 0) place_tiles(E, work.tile_rows, shared);
  __syncthreads();
  if (thread() < E) open_tiles(work, thread(), shared);
  for (int tile = shared.tiles + thread(); tile < work.max_tiles; tile += kThreads)
    work.tile_expert[tile] = -1;
  __syncthreads();
  for_each_slot(work, kWarps, [&](int slot, int expert, int rank, int peers) {
    const int row = expert >= 0 ? shared.counts[warp()][expert] + rank : -1;
    if (slot < work.slots) work.slot_row[slot] = row;
    if (row >= 0) work.row_slot[row] = slot;
    __syncwarp();
    if (expert >= 0 && rank == 0) shared.counts[warp()][expert] += peers;
    __syncwarp();
  });
}

/// Grid: one block. Block: a warp counts and places a stretch of slots, a thread opens an expert's tiles.
__global__ void __launch_bounds__(kSortThreads) sort_all_slots(const Workspace work, const int E) {
  __shared__ SortShared<kSortThreads> shared;
  sort_slots(work, E, shared);
}

constexpr int kRouteAndSortThreads = 256;

/// For few tokens. Grid: one block. Block: a warp routes a token, then all sort.
__global__ void __launch_bounds__(kRouteAndSortThreads, 1)
    route_and_sort(const SparseMoeKernelParams params, const Workspace work) {
  static_assert(kRouteAndSortThreads / kWarp >= kDecodeTokens);
  __shared__ union {
    RouteShared route[kDecodeTokens];
    SortShared<kRouteAndSortThreads> sort;
  } shared;
  if (warp() < params.T) route_token(params, work, warp(), shared.route[warp()]);
  __syncthreads();
  sort_slots(work, static_cast<int>(params.E), shared.sort);
}

}  // namespace fastmmoe::sparse_moe
