// SPDX-License-Identifier: Apache-2.0
// For few rows, and for latent heads, whose sums do not fit into the registers of one warp: all warps of a
// block have the same lines. For scores they share out the keys, for the softmax the lines, for values the
// columns; scores and weights go through shared memory. Two tiles of keys and values are there or on their
// way.
//
// Few rows are too few blocks to read a long cache, so its keys are split: each block leaves what it has seen
// and its sums to combine_splits. Blocks beyond the rows in use end at once: time follows the rows, not C.
#pragma once

#include "attention/cuda/heads.h"
#include "attention/cuda/operands.cuh"
#include "attention/cuda/softmax.cuh"

namespace fastmmoe::attention {

/// 16 kLineOps lines and tiles of kKeys keys. For scores a warp has one operation's lines, one of kKeyGroups
/// groups of keys and one of kParts parts of the depth.
template <typename Heads_, int kLineOps_, int kKeyGroups_, int kParts_, int kKeys_>
struct TogetherTile {
  using Heads = Heads_;
  static constexpr int kLineOps = kLineOps_, kKeyGroups = kKeyGroups_, kParts = kParts_, kKeys = kKeys_;
  static constexpr int kLines = kLineOps * kOpLines, kWarps = kLineOps * kKeyGroups * kParts;
  static constexpr int kThreads = kWarps * kWarp, kWarpLines = kLines / kWarps;
  static constexpr int kWarpKeys = kKeys / kKeyGroups, kWarpDepth = Heads::kKeyWidth / kParts;
  static constexpr int kValueOps = Heads::kValueWidth / kWarps / kOpKeys;  // of a warp
  static constexpr int kLaneKeys = (kKeys + kWarp - 1) / kWarp;
  static_assert(kWarpKeys == kOpKeys || kWarpKeys == 2 * kOpKeys, "load_scores_operand has these two ways");
  static_assert(kWarpDepth % (2 * kOpDepth) == 0 && kValueOps % 2 == 0 && kLines % kWarps == 0);
};

template <typename Tile>
struct TogetherShared {
  using Heads = typename Tile::Heads;
  // So that neighbouring rows are in different banks.
  static constexpr int kScoreStride = Tile::kKeys + 8, kWeightStride = Tile::kKeys + 8;
  static constexpr int kStages = 2;
  static constexpr int kQueryBytes = Tile::kLines * SharedRows<Heads::kKeyWidth>::kRowBytes;
  static constexpr int kKeyBytes = Tile::kKeys * SharedRows<Heads::kKeyWidth>::kRowBytes;
  static constexpr int kValueBytes =
      Heads::kIsLatent ? 0 : Tile::kKeys * SharedRows<Heads::kValueWidth>::kRowBytes;
  static constexpr int kStageBytes = kKeyBytes + kValueBytes;
  static constexpr int kScoreBytes = Tile::kParts * Tile::kLines * kScoreStride * int{sizeof(float)};
  static constexpr int kWeightBytes = Tile::kLines * kWeightStride * kElementBytes;
  static constexpr int kFactorBytes = Tile::kLines * int{sizeof(float)};
  static constexpr int kBytes =
      kQueryBytes + kStages * kStageBytes + kScoreBytes + kWeightBytes + kFactorBytes;

  char* start;

  __device__ SharedRows<Heads::kKeyWidth> query() const { return {start}; }
  __device__ SharedRows<Heads::kKeyWidth> keys(int stage) const {
    return {start + kQueryBytes + stage * kStageBytes};
  }
  /// Of the width of keys where they are the keys.
  __device__ auto values(int stage) const {
    if constexpr (Heads::kIsLatent) {
      return keys(stage);
    } else {
      return SharedRows<Heads::kValueWidth>{keys(stage).start + kKeyBytes};
    }
  }
  __device__ float* scores(int part, int line) const {
    return reinterpret_cast<float*>(start + kQueryBytes + kStages * kStageBytes) +
           (part * Tile::kLines + line) * kScoreStride;
  }
  __device__ char* weights(int line, int key) const {
    return start + kQueryBytes + kStages * kStageBytes + kScoreBytes +
           (line * kWeightStride + key) * kElementBytes;
  }
  __device__ float& factor(int line) const {
    return reinterpret_cast<float*>(start + kBytes - kFactorBytes)[line];
  }
};

/// Called by a warp: its share of the products of query and keys, to shared memory.
template <typename Tile>
__device__ void score(const TogetherShared<Tile>& shared, int stage) {
  using T = typename Tile::Heads::Type;
  const int part = warp() % Tile::kParts,
            first_key = warp() / Tile::kParts % Tile::kKeyGroups * Tile::kWarpKeys;
  const int first_line = warp() / (Tile::kParts * Tile::kKeyGroups) * kOpLines;
  const auto query_rows = shared.query(), key_rows = shared.keys(stage);
  // Two sums: of 8 keys each, or of every second operation, so that they do not wait for each other.
  float sums[2][4] = {};
#pragma unroll 2
  for (int step = 0; step < Tile::kWarpDepth; step += 2 * kOpDepth) {
    const int depth = part * Tile::kWarpDepth + step;
    uint32_t query[2][4], keys[2][4];
    load_left(query_rows, first_line, depth, query[0]);
    load_left(query_rows, first_line, depth + kOpDepth, query[1]);
    if constexpr (Tile::kWarpKeys == kOpKeys) {
      load_matrix(keys[0], key_rows.at(first_key, depth, lane() % 8, lane() / 8));
      multiply<T>(sums[0], query[0], keys[0][0], keys[0][1]);
      multiply<T>(sums[1], query[1], keys[0][2], keys[0][3]);
    } else {
#pragma unroll
      for (int op = 0; op < 2; ++op) {
        load_right(key_rows, first_key, depth + op * kOpDepth, keys[op]);
        multiply<T>(sums[0], query[op], keys[op][0], keys[op][1]);
        multiply<T>(sums[1], query[op], keys[op][2], keys[op][3]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float* to = shared.scores(part, first_line + lane() / 4 + h * 8) + first_key + lane() % 4 * 2;
    const float* low = sums[0] + 2 * h;
    const float* high = sums[1] + 2 * h;
    if constexpr (Tile::kWarpKeys == kOpKeys) {
      *reinterpret_cast<float2*>(to) = {low[0] + high[0], low[1] + high[1]};
    } else {
      *reinterpret_cast<float2*>(to) = {low[0], low[1]};
      *reinterpret_cast<float2*>(to + kOpKeys) = {high[0], high[1]};
    }
  }
}

/// The lines of which a warp does the softmax; each lane has every 32nd key.
template <typename Tile>
class WarpLines {
 public:
  using T = typename Tile::Heads::Type;

  __device__ WarpLines(const Piece& piece, const Positions& positions) {
#pragma unroll
    for (int i = 0; i < Tile::kWarpLines; ++i) {
      const int line = piece.first + first_line() + i;
      limit_[i] = line < piece.end ? piece.limit(line) : -1;
      own_[i] = positions.has_window() && line < piece.end ? positions.at(limit_[i]) : 0;
    }
  }

  /// Loads ahead the positions of a tile's keys.
  __device__ void expect(const Positions& positions, int first_key, int end) {
#pragma unroll
    for (int c = 0; c < Tile::kLaneKeys; ++c) {
      const int key = first_key + lane() + c * kWarp;
      positions_[c] = positions.has_window() && key < end ? positions.at(key) : 0;
    }
  }

  /// Called by the warp: scores of the tile become weights, and each line's factor what its sums need.
  __device__ void weigh(const TogetherShared<Tile>& shared, float scale, int first_key,
                        const Positions& positions) {
#pragma unroll
    for (int i = 0; i < Tile::kWarpLines; ++i) {
      const int line = first_line() + i;
      float scores[Tile::kLaneKeys], greatest = -INFINITY, total = 0.0f;
#pragma unroll
      for (int c = 0; c < Tile::kLaneKeys; ++c) {
        const int place = lane() + c * kWarp;
        const bool is_seen = place < Tile::kKeys && first_key + place <= limit_[i] &&
                             (!positions.has_window() || positions.shows(own_[i], positions_[c]));
        scores[c] = -INFINITY;
        if (is_seen) {
          float sum = shared.scores(0, line)[place];
#pragma unroll
          for (int part = 1; part < Tile::kParts; ++part) sum += shared.scores(part, line)[place];
          scores[c] = sum * scale;
        }
        greatest = fmaxf(greatest, scores[c]);
      }
      const float factor = seen_[i].raise(warp_max(greatest)), base = seen_[i].base();
#pragma unroll
      for (int c = 0; c < Tile::kLaneKeys; ++c) {
        const int place = lane() + c * kWarp;
        const float weight = power_of_two(scores[c] - base);
        total += weight;
        if (place < Tile::kKeys) *reinterpret_cast<T*>(shared.weights(line, place)) = from_float<T>(weight);
      }
      seen_[i].total += warp_sum(total);
      if (lane() == 0) shared.factor(line) = factor;
    }
  }

  /// Calls visit(line of the piece, what it has seen) in lane 0.
  template <typename Visit>
  __device__ void for_each(const Visit& visit) const {
    if (lane() != 0) return;
#pragma unroll
    for (int i = 0; i < Tile::kWarpLines; ++i) visit(first_line() + i, seen_[i]);
  }

 private:
  __device__ static int first_line() { return warp() * Tile::kWarpLines; }

  int limit_[Tile::kWarpLines], own_[Tile::kWarpLines], positions_[Tile::kLaneKeys];
  Seen seen_[Tile::kWarpLines];
};

/// A warp's columns of all lines' sums.
template <typename Tile>
class WarpColumns {
 public:
  using T = typename Tile::Heads::Type;

  /// Called by the warp: adds the values of a tile times their weights.
  __device__ void add(const TogetherShared<Tile>& shared, int stage) {
    scale(shared);
    const auto rows = shared.values(stage);
#pragma unroll
    for (int key = 0; key < Tile::kKeys; key += kOpDepth) {
      uint32_t weights[Tile::kLineOps][4];
#pragma unroll
      for (int l = 0; l < Tile::kLineOps; ++l) {
        load_matrix(weights[l], shared.weights(l * kOpLines + lane() % 16, key + lane() / 16 * 8));
      }
#pragma unroll
      for (int i = 0; i < Tile::kValueOps; i += 2) {
        uint32_t values[4];
        load_right_rows(rows, key, first_column() + i * kOpKeys, values);
#pragma unroll
        for (int l = 0; l < Tile::kLineOps; ++l) {
          multiply<T>(sums_[l][i], weights[l], values[0], values[1]);
          multiply<T>(sums_[l][i + 1], weights[l], values[2], values[3]);
        }
      }
    }
  }

  /// Multiplies each line by its factor.
  __device__ void scale(const TogetherShared<Tile>& shared) {
#pragma unroll
    for (int l = 0; l < Tile::kLineOps; ++l) {
      const float low = shared.factor(l * kOpLines + lane() / 4);
      const float high = shared.factor(l * kOpLines + lane() / 4 + 8);
#pragma unroll
      for (auto& op : sums_[l]) {
        op[0] *= low;
        op[1] *= low;
        op[2] *= high;
        op[3] *= high;
      }
    }
  }

  /// Calls visit(line of the piece, column, value there, value of the next column).
  template <typename Visit>
  __device__ void for_each(const Visit& visit) const {
#pragma unroll
    for (int l = 0; l < Tile::kLineOps; ++l) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = 0; i < Tile::kValueOps; ++i) {
          visit(l * kOpLines + lane() / 4 + h * 8, first_column() + i * kOpKeys + lane() % 4 * 2,
                sums_[l][i][2 * h], sums_[l][i][2 * h + 1]);
        }
      }
    }
  }

 private:
  __device__ static int first_column() { return warp() * Tile::kValueOps * kOpKeys; }

  float sums_[Tile::kLineOps][Tile::kValueOps][4] = {};
};

/// Called by the block: makes the output of what it has seen.
template <typename Tile>
__device__ void store_output(const AttentionParams& params, const Piece& piece, int key_head,
                             const TogetherShared<Tile>& shared, const WarpLines<Tile>& lines,
                             WarpColumns<Tile>& columns) {
  using T = typename Tile::Heads::Type;
  __syncthreads();  // the factors of the last tile are done with
  lines.for_each([&](int line, Seen seen) {
    if (piece.first + line >= piece.end) return;
    const int64_t place = piece.place(piece.first + line, key_head);
    shared.factor(line) = finish<T>(params, seen, place % params.N);
    store_lse(params, seen, place);
  });
  __syncthreads();
  columns.scale(shared);
  columns.for_each([&](int line, int column, float first, float second) {
    if (piece.first + line >= piece.end || column >= params.W) return;
    const int64_t place = piece.place(piece.first + line, key_head);
    store_pair(static_cast<T*>(params.output) + place * params.W + column, first, second);
  });
}

/// Called by the block: leaves what it has seen to combine_splits; without sums where it has seen nothing.
template <typename Tile>
__device__ void store_split(const AttentionParams& params, const Splits& splits, const Piece& piece,
                            int key_head,

                            const WarpLines<Tile>& lines, const WarpColumns<Tile>& columns, bool has_sums) {
  const int64_t first_place = blockIdx.z * params.T * params.N;
  lines.for_each([&](int line, const Seen& seen) {
    if (piece.first + line < piece.end) {
      splits.seen[first_place + piece.place(piece.first + line, key_head)] = seen;
    }
  });
  if (!has_sums) return;
  columns.for_each([&](int line, int column, float first, float second) {
    if (piece.first + line >= piece.end || column >= params.W) return;
    const int64_t place = first_place + piece.place(piece.first + line, key_head);
    *reinterpret_cast<float2*>(splits.sums + place * params.W + column) = {first, second};
  });
}

}  // namespace fastmmoe::attention
