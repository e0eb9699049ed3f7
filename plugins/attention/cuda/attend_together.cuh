// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention/cuda/together.cuh"
#include "common/cuda/launch.h"

namespace fastmmoe::attention {

/// Grid: pieces of Tile::kLines, those that see most first; key heads; splits. Block: see above.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    attend_together(const AttentionParams params, const Splits splits) {
  using Heads = typename Tile::Heads;
  using T = typename Heads::Type;
  DYNAMIC_SHARED(char, memory);
  __shared__ WindowShared window;
  const TogetherShared<Tile> shared{memory};
  const Piece piece = piece_at<Tile::kLines>(params, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (piece.is_empty()) return;
  const int key_head = static_cast<int>(blockIdx.y);
  int first = static_cast<int>(blockIdx.z) * splits.keys;
  const int end = min(first + splits.keys, piece.key_end());
  if (first >= end) return;
  if (blockIdx.z == 0) append_rows<T, Tile::kThreads>(params, piece, key_head);
  const Positions positions(params, piece);
  if (positions.has_window()) {
    first = first_in_window<Tile::kThreads>(positions, piece, first, end, window);
    // A split that shows nothing has no tile either.
    if (first < end) first = first / Tile::kKeys * Tile::kKeys;
  }
  const bool has_keys = first < end;

  const CachedRows<T> keys = keys_of<T>(params, piece, key_head),
                      values = values_of<T>(params, piece, key_head);
  const auto copy = [&](int first_key, int stage) {
    keys.template copy<Tile::kKeys, Tile::kThreads>(shared.keys(stage), first_key, end);
    if constexpr (!Heads::kIsLatent) {
      values.template copy<Tile::kKeys, Tile::kThreads>(shared.values(stage), first_key, end);
    }
  };
  const float factor = params.attributes.scale * kLog2E;
  WarpLines<Tile> lines(piece, positions);
  WarpColumns<Tile> columns;
  if (has_keys) {
    copy_query<T, Tile::kLines, Tile::kThreads>(params, piece, key_head, shared.query());
    copy(first, 0);
  }
  for (int stage = 0; first < end; first += Tile::kKeys, stage ^= 1) {
    copy_async_wait_all();
    __syncthreads();  // the tile is here, and the last one is done with
    if (first + Tile::kKeys < end) copy(first + Tile::kKeys, stage ^ 1);
    lines.expect(positions, first, end);
    score(shared, stage);
    __syncthreads();
    lines.weigh(shared, factor, first, positions);
    __syncthreads();
    columns.add(shared, stage);
  }
  if (splits.sums == nullptr) {
    store_output(params, piece, key_head, shared, lines, columns);
  } else {
    store_split(params, splits, piece, key_head, lines, columns, has_keys);
  }
}

}  // namespace fastmmoe::attention
