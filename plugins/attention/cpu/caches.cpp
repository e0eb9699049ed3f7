// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/caches.h"

#include <algorithm>
#include <cstring>

#include "common/divide.h"

namespace fastmmoe {
namespace {

constexpr int64_t kBytesPerCopy = 1 << 20;

int64_t size_of(FloatType type) { return type == FloatType::kFloat ? 4 : 2; }

void copy(const void* from, void* to, int64_t bytes, const ParallelFor& parallel_for) {
  if (from == to || to == nullptr) return;
  parallel_for(divide_up(bytes, kBytesPerCopy), [=](int64_t item) {
    const int64_t begin = item * kBytesPerCopy, count = std::min(kBytesPerCopy, bytes - begin);
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                static_cast<size_t>(count));
  });
}

// Where row 0 of key head k of a cache starts.
char* head(const AttentionParams& params, const void* present, int64_t cache, int64_t k, int64_t width) {
  const int64_t row = (cache * params.K + k) * params.C;
  return static_cast<char*>(const_cast<void*>(present)) + row * width * size_of(params.cache_type);
}

// Row j of a cache from row `row` of the call.
void write_row(const AttentionParams& params, const void* from, int64_t row, int64_t k, int64_t width,
               char* head, int64_t j, RoundFunction round) {
  const float* values = static_cast<const float*>(from) + (row * params.K + k) * width;
  char* to = head + j * width * size_of(params.cache_type);
  if (params.cache_type == FloatType::kFloat) {
    std::memcpy(to, values, static_cast<size_t>(width) * sizeof *values);
  } else {
    round(values, width, reinterpret_cast<Bfloat16*>(to));
  }
}

}  // namespace

void copy_caches(const AttentionParams& params, const ParallelFor& parallel_for) {
  const int64_t rows = params.B * params.K * params.C, size = size_of(params.cache_type);
  copy(params.past_key, params.present_key, rows * params.D * size, parallel_for);
  copy(params.past_value, params.present_value, rows * params.W * size, parallel_for);
  copy(params.past_position_ids, params.present_position_ids,
       params.B * params.C * static_cast<int64_t>(sizeof(int32_t)), parallel_for);
}

void write_rows(const AttentionParams& params, const PlannedSequence& sequence, int64_t begin, int64_t end,
                int64_t k, RoundFunction round) {
  begin = std::max(begin, sequence.past);
  end = std::min(end, sequence.past + sequence.length);
  if (begin >= end) return;
  const int64_t shift = sequence.first - sequence.past;  // from rows of the cache to rows of the call
  char* keys = head(params, params.present_key, sequence.cache, k, params.D);
  for (int64_t j = begin; j < end; ++j) {
    write_row(params, params.key, j + shift, k, params.D, keys, j, round);
  }
  if (params.present_value != nullptr) {
    char* values = head(params, params.present_value, sequence.cache, k, params.W);
    for (int64_t j = begin; j < end; ++j) {
      write_row(params, params.value, j + shift, k, params.W, values, j, round);
    }
  }
  if (k == 0 && params.present_position_ids != nullptr) {
    std::copy(params.position_ids + begin + shift, params.position_ids + end + shift,
              params.present_position_ids + sequence.cache * params.C + begin);
  }
}

const void* cached_keys(const AttentionParams& params, int64_t cache, int64_t k) {
  return head(params, params.present_key, cache, k, params.D);
}

const void* cached_values(const AttentionParams& params, int64_t cache, int64_t k) {
  if (params.present_value == nullptr) return cached_keys(params, cache, k);
  return head(params, params.present_value, cache, k, params.W);
}

}  // namespace fastmmoe
