// SPDX-License-Identifier: Apache-2.0
// For many rows, in the shape of FlashAttention-2: every warp has lines of its own, its scores stay in
// registers and become the left operand of the second product there. While keys are multiplied, the values of
// the tile arrive, and while values are multiplied, the next keys: so keys and values have room for one tile
// each, and a multiprocessor for more blocks.
#pragma once

#include "attention/cuda/operands.cuh"
#include "attention/cuda/softmax.cuh"
#include "common/cuda/launch.h"

namespace fastmmoe::attention {

constexpr int kApartLines = 64, kApartKeys = 64, kApartThreads = 128;
static_assert(kApartLines == kApartThreads / kWarp * kOpLines, "each warp has the lines of one operation");

template <typename Heads>
struct ApartShared {
  static constexpr int kQueryBytes = kApartLines * SharedRows<Heads::kKeyWidth>::kRowBytes;
  static constexpr int kKeyBytes = kApartKeys * SharedRows<Heads::kKeyWidth>::kRowBytes;
  static constexpr int kValueBytes = kApartKeys * SharedRows<Heads::kValueWidth>::kRowBytes;
  static constexpr int kBytes = kQueryBytes + kKeyBytes + kValueBytes + kApartKeys * int{sizeof(int)};

  SharedRows<Heads::kKeyWidth> query, keys;
  SharedRows<Heads::kValueWidth> values;
  int* positions;  // of the tile's keys

  __device__ explicit ApartShared(char* start)
      : query{start},
        keys{start + kQueryBytes},
        values{start + kQueryBytes + kKeyBytes},
        positions(reinterpret_cast<int*>(start + kQueryBytes + kKeyBytes + kValueBytes)) {}
};

/// Blocks of a multiprocessor that there must be registers for.
template <typename Heads>
constexpr int kApartBlocks = Heads::kValueWidth <= 64 ? 3 : 2;

/// The lines g and g + 8 of a warp, where g = lane / 4. Lane l has scores of the keys 8 i + 2 (l % 4) and the
/// one after it, and sums of the same columns.
template <typename Heads>
class ApartLines {
 public:
  using T = typename Heads::Type;

  __device__ ApartLines(const Piece& piece, const Positions& positions) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      line_[h] = piece.first + warp() * kOpLines + lane() / 4 + h * 8;
      limit_[h] = line_[h] < piece.end ? piece.limit(line_[h]) : -1;
      own_[h] = positions.has_window() && line_[h] < piece.end ? positions.at(limit_[h]) : 0;
    }
  }

  __device__ void multiply_keys(const ApartShared<Heads>& shared) {
#pragma unroll
    for (auto& op : scores_) op[0] = op[1] = op[2] = op[3] = 0.0f;
#pragma unroll
    for (int depth = 0; depth < Heads::kKeyWidth; depth += kOpDepth) {
      uint32_t query[4], keys[4];
      load_left(shared.query, warp() * kOpLines, depth, query);
#pragma unroll
      for (int i = 0; i < kKeyOps; i += 2) {
        load_right(shared.keys, i * kOpKeys, depth, keys);
        multiply<T>(scores_[i], query, keys[0], keys[1]);
        multiply<T>(scores_[i + 1], query, keys[2], keys[3]);
      }
    }
  }

  /// Scores become exponents of two; those of keys that a line does not see are gone.
  template <bool kMasks>
  __device__ void scale(float factor, int first_key, const Positions& positions, const int* tile_positions) {
#pragma unroll
    for (int i = 0; i < kKeyOps; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores_[i][j] *= factor;
        if constexpr (kMasks) {
          const int place = i * kOpKeys + lane() % 4 * 2 + j % 2;
          const bool is_seen =
              first_key + place <= limit_[j / 2] &&
              (!positions.has_window() || positions.shows(own_[j / 2], tile_positions[place]));
          if (!is_seen) scores_[i][j] = -INFINITY;
        }
      }
    }
  }

  /// Scores become weights. Each lane adds up those it has.
  __device__ void weigh() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float greatest = -INFINITY;
#pragma unroll
      for (const auto& op : scores_) greatest = fmaxf(greatest, fmaxf(op[2 * h], op[2 * h + 1]));
      greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, 2));
      const float factor = seen_[h].raise(greatest), base = seen_[h].base();
#pragma unroll
      for (auto& op : sums_) {
        op[2 * h] *= factor;
        op[2 * h + 1] *= factor;
      }
#pragma unroll
      for (auto& op : scores_) {
        op[2 * h] = power_of_two(op[2 * h] - base);
        op[2 * h + 1] = power_of_two(op[2 * h + 1] - base);
        seen_[h].total += op[2 * h] + op[2 * h + 1];
      }
    }
  }

  __device__ void multiply_values(const ApartShared<Heads>& shared) {
#pragma unroll
    for (int key = 0; key < kApartKeys; key += kOpDepth) {
      const auto &low = scores_[key / kOpKeys], &high = scores_[key / kOpKeys + 1];
      const uint32_t weights[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                   pack_pair<T>(high[0], high[1]), pack_pair<T>(high[2], high[3])};
#pragma unroll
      for (int i = 0; i < kValueOps; i += 2) {
        uint32_t values[4];
        load_right_rows(shared.values, key, i * kOpKeys, values);
        multiply<T>(sums_[i], weights, values[0], values[1]);
        multiply<T>(sums_[i + 1], weights, values[2], values[3]);
      }
    }
  }

  __device__ void store(const AttentionParams& params, const Piece& piece, int key_head) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Seen seen = seen_[h];
      seen.total += __shfl_xor_sync(kAllLanes, seen.total, 1);
      seen.total += __shfl_xor_sync(kAllLanes, seen.total, 2);
      if (line_[h] >= piece.end) continue;
      const int64_t place = piece.place(line_[h], key_head);
      const float factor = finish<T>(params, seen, place % params.N);
      if (lane() % 4 == 0) store_lse(params, seen, place);
      T* output = static_cast<T*>(params.output) + place * params.W;
#pragma unroll
      for (int i = 0; i < kValueOps; ++i) {
        if (i * kOpKeys >= params.W) break;
        store_pair(output + i * kOpKeys + lane() % 4 * 2, sums_[i][2 * h] * factor,
                   sums_[i][2 * h + 1] * factor);
      }
    }
  }

 private:
  static constexpr int kKeyOps = kApartKeys / kOpKeys, kValueOps = Heads::kValueWidth / kOpKeys;

  int line_[2], limit_[2], own_[2];
  Seen seen_[2];
  float scores_[kKeyOps][4];
  float sums_[kValueOps][4] = {};
};

/// Grid: pieces of kApartLines, those that see most first; key heads. Block: each warp has 16 of the lines.
template <typename Heads>
__global__ void __launch_bounds__(kApartThreads, kApartBlocks<Heads>)
    attend_apart(const AttentionParams params) {
  using T = typename Heads::Type;
  DYNAMIC_SHARED(char, memory);
  __shared__ WindowShared window;
  const ApartShared<Heads> shared(memory);
  const Piece piece = piece_at<kApartLines>(params, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (piece.is_empty()) return;
  const int key_head = static_cast<int>(blockIdx.y), end = piece.key_end();
  const Positions positions(params, piece);
  const CachedRows<T> keys = keys_of<T>(params, piece, key_head),
                      values = values_of<T>(params, piece, key_head);
  const float factor = params.attributes.scale * kLog2E;
  // Up to here every line sees all, unless there is a window.
  const int seen_by_all = positions.has_window() ? 0 : piece.limit(piece.first) + 1;

  int first = 0;
  if (positions.has_window()) {
    first = first_in_window<kApartThreads>(positions, piece, 0, end, window) / kApartKeys * kApartKeys;
  }
  copy_query<T, kApartLines, kApartThreads>(params, piece, key_head, shared.query);
  keys.template copy<kApartKeys, kApartThreads>(shared.keys, first, end);
  append_rows<T, kApartThreads>(params, piece, key_head);
  ApartLines<Heads> lines(piece, positions);
  for (; first < end; first += kApartKeys) {
    copy_async_wait_all();
    __syncthreads();  // the keys are here, and the values of the last tile are done with
    values.template copy<kApartKeys, kApartThreads>(shared.values, first, end);
    lines.multiply_keys(shared);
    if (positions.has_window() && thread() < kApartKeys) {
      shared.positions[thread()] = first + thread() < end ? positions.at(first + thread()) : 0;
    }
    copy_async_wait_all();
    __syncthreads();  // the values and positions are here, and the keys are done with
    if (first + kApartKeys < end) {
      keys.template copy<kApartKeys, kApartThreads>(shared.keys, first + kApartKeys, end);
    }
    if (first + kApartKeys <= seen_by_all) {
      lines.template scale<false>(factor, first, positions, shared.positions);
    } else {
      lines.template scale<true>(factor, first, positions, shared.positions);
    }
    lines.weigh();
    lines.multiply_values(shared);
  }
  lines.store(params, piece, key_head);
}

}  // namespace fastmmoe::attention
