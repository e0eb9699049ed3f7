// SPDX-License-Identifier: Apache-2.0
// The keys, values and positions of a sequence: those from before the call are in the caches, those of the
// call in its inputs. They are read from where they are, so that a kernel may write the new rows to the
// caches while others read: no row is both written and read.
#pragma once

#include <cstdint>

#include "attention/cuda/piece.cuh"
#include "common/cuda/elements.cuh"

namespace fastmmoe::attention {

/// Element type, and the widths that there is room for: columns beyond D and W are zeros. With kIsLatent the
/// values are the first columns of the keys in shared memory, too.
template <typename T, int kKeyWidth_, int kValueWidth_, bool kIsLatent_ = false>
struct Heads {
  using Type = T;
  static constexpr int kKeyWidth = kKeyWidth_, kValueWidth = kValueWidth_;
  static constexpr bool kIsLatent = kIsLatent_;
};

/// A matrix [rows, kWidth] in shared memory. Pieces of 16 bytes are swapped within 8, so that the same piece
/// of eight neighbouring rows is in different banks, as load_matrix wants it.
template <int kWidth>
struct SharedRows {
  static constexpr int kRowBytes = kWidth * kElementBytes, kPieces = kWidth / kVector;
  static constexpr int kPieceBytes = kVector * kElementBytes, kSwapped = 8;  // pieces
  static_assert(kPieces % kSwapped == 0);

  char* start;

  /// Where a piece is. `row`, a multiple of 8, and `column`, of 16, are best known to the compiler: lanes
  /// then keep only four addresses for all of them.
  __device__ char* at(int row, int column, int lane_row, int lane_piece) const {
    const int piece = column / kVector, group = piece / kSwapped * kSwapped;
    const int swapped = piece % kSwapped ^ (lane_piece ^ lane_row % kSwapped);
    return start + (row * kRowBytes + group * kPieceBytes) + (lane_row * kRowBytes + swapped * kPieceBytes);
  }
};

/// Starts to copy rows of `width` at row_at(i), a multiple of 8; zeros where that is null, and beyond the
/// width. kThreads is the size of the block; `any` is an address that may be read.
template <int kRows, int kThreads, typename T, int kWidth, typename RowAt>
__device__ void copy_rows(const SharedRows<kWidth>& shared, int width, const T* any, const RowAt& row_at) {
  constexpr int kPieces = SharedRows<kWidth>::kPieces, kCopies = kRows * kPieces;
#pragma unroll 8
  for (int i = 0; i < (kCopies + kThreads - 1) / kThreads; ++i) {
    const int index = thread() + i * kThreads, row = index / kPieces, column = index % kPieces * kVector;
    if (kCopies % kThreads != 0 && index >= kCopies) break;
    const T* source = row_at(row);
    const bool is_valid = source != nullptr && column < width;
    copy_async_16(shared.at(0, 0, row, column / kVector), is_valid ? source + column : any, is_valid);
  }
}

/// Keys or values of one sequence and key head. With value_width, values are the keys up to their width.
template <typename T>
class CachedRows {
 public:
  /// fresh: [T, K, stride]; cache: [B, K, C, stride].
  __device__ CachedRows(const AttentionParams& params, const Piece& piece, int key_head, const void* fresh,
                        const void* cache, int64_t width, int64_t stride)
      : cache_(static_cast<const T*>(cache) + (piece.sequence * params.K + key_head) * params.C * stride),
        fresh_(static_cast<const T*>(fresh) + (piece.first_row * params.K + key_head) * stride),
        stride_(stride),
        fresh_stride_(params.K * stride),
        width_(static_cast<int>(width)),
        past_(piece.past) {}

  __device__ const T* at(int key) const {
    return key < past_ ? cache_ + key * stride_ : fresh_ + (key - past_) * fresh_stride_;
  }

  /// Starts to copy the keys from `first` on that are before `end`; zeros in place of the others.
  template <int kKeys, int kThreads, int kWidth>
  __device__ void copy(const SharedRows<kWidth>& shared, int first, int end) const {
    copy_rows<kKeys, kThreads>(shared, width_, fresh_,
                               [&](int i) { return first + i < end ? at(first + i) : nullptr; });
  }

 private:
  const T* cache_;
  const T* fresh_;
  int64_t stride_, fresh_stride_;
  int width_, past_;
};

template <typename T>
__device__ CachedRows<T> keys_of(const AttentionParams& params, const Piece& piece, int key_head) {
  return {params, piece, key_head, params.key, params.past_key, params.D, params.D};
}

template <typename T>
__device__ CachedRows<T> values_of(const AttentionParams& params, const Piece& piece, int key_head) {
  if (params.value == nullptr) {
    return {params, piece, key_head, params.key, params.past_key, params.W, params.D};
  }
  return {params, piece, key_head, params.value, params.past_value, params.W, params.W};
}

/// Original positions of the keys of a sequence, and which a window shows.
class Positions {
 public:
  __device__ Positions(const AttentionParams& params, const Piece& piece)
      : window_(static_cast<uint32_t>(params.attributes.window)) {
    if (window_ == 0) return;
    fresh_ = params.position_ids + piece.first_row;
    cache_ = params.past_position_ids + piece.sequence * params.C;
    past_ = piece.past;
  }

  __device__ bool has_window() const { return window_ != 0; }
  __device__ int at(int key) const { return key < past_ ? cache_[key] : fresh_[key - past_]; }
  /// Whether a row at position `own` sees a key at `position`.
  __device__ bool shows(int own, int position) const {
    return static_cast<uint32_t>(own) - static_cast<uint32_t>(position) < window_;
  }

 private:
  uint32_t window_;
  int past_ = 0;
  const int32_t* fresh_ = nullptr;
  const int32_t* cache_ = nullptr;
};

struct WindowShared {
  int oldest, first;
};

/// Called by the block: the first key of [begin, end) that may be in the window of a line of the piece, or
/// end.
template <int kThreads>
__device__ int first_in_window(const Positions& positions, const Piece& piece, int begin, int end,
                               WindowShared& shared) {
  constexpr int kTogether = 8;  // loads that do not wait for each other
  if (thread() == 0) shared = {INT32_MAX, end};
  __syncthreads();
  for (int line = piece.first + thread(); line < piece.end; line += kThreads) {
    atomicMin(&shared.oldest, positions.at(piece.limit(line)));
  }
  __syncthreads();
  const int oldest = shared.oldest;
  for (int first = begin + thread(); first < end; first += kThreads * kTogether) {
    int found = end;
#pragma unroll
    for (int i = kTogether - 1; i >= 0; --i) {
      const int key = first + i * kThreads;
      if (key < end && (positions.at(key) > oldest || positions.shows(oldest, positions.at(key))))
        found = key;
    }
    if (found == end) continue;
    atomicMin(&shared.first, found);
    break;
  }
  __syncthreads();
  return shared.first;
}

/// Called by the block: writes the new keys, values and positions of the rows whose first line is in the
/// piece.
template <typename T, int kThreads>
__device__ void append_rows(const AttentionParams& params, const Piece& piece, int key_head) {
  const int first = (piece.first + piece.group - 1) / piece.group;
  const int end = min((piece.end + piece.group - 1) / piece.group, piece.used - piece.past);
  const auto append = [&](const void* fresh, void* cache, int64_t width) {
    const int pieces = static_cast<int>(width) / kVector;
    const T* from = static_cast<const T*>(fresh) + (piece.first_row * params.K + key_head) * width;
    T* to = static_cast<T*>(cache) + ((piece.sequence * params.K + key_head) * params.C + piece.past) * width;
    for (int i = first * pieces + thread(); i < end * pieces; i += kThreads) {
      const int64_t row = i / pieces, column = i % pieces * kVector;
      *reinterpret_cast<uint4*>(to + row * width + column) =
          *reinterpret_cast<const uint4*>(from + row * params.K * width + column);
    }
  };
  append(params.key, params.present_key, params.D);
  if (params.value != nullptr) append(params.value, params.present_value, params.W);
  if (params.present_position_ids == nullptr || key_head != 0) return;
  int32_t* positions = params.present_position_ids + piece.sequence * params.C + piece.past;
  for (int row = first + thread(); row < end; row += kThreads) {
    positions[row] = params.position_ids[piece.first_row + row];
  }
}

}  // namespace fastmmoe::attention
