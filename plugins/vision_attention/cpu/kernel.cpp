// SPDX-License-Identifier: Apache-2.0
#include "vision_attention/cpu/kernel.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "attention/cpu/attend.h"
#include "attention/cpu/scratch.h"
#include "common/divide.h"
#include "common/processor.h"

namespace fastmmoe {
namespace {

using namespace vision_attention;

static_assert(kMostB * kMostT <= std::numeric_limits<int64_t>::max() / 4 / (3 * kMostN * kMostD), "qkv");

constexpr float kLog2E = 1.44269504f;

// One head of one tile is an item: its keys and values are put together once, for all of its query rows.
class Call {
 public:
  explicit Call(const VisionAttentionParams& params)
      : params_(params),
        functions_(attend_for_this_cpu()),
        type_(params.compute == Compute::kBfloat16 && isa_of_this_cpu() >= Isa::kAvx512Bf16
                  ? FloatType::kBfloat16
                  : FloatType::kFloat),
        row_(params.N * params.D) {}

  void run(int64_t item) const {
    const int64_t n = item % params_.N, width = padded(params_.D);
    const float* const rows = params_.qkv + item / params_.N * params_.T * 3 * row_ + n * params_.D;
    float* const output = params_.output + item / params_.N * params_.T * row_ + n * params_.D;
    // Floats, of which bfloat16 takes the first half.
    thread_local ThreadMemory memory;
    float* const keys = memory.reserve(params_.T * (params_.D + width) + kMostLanes);
    float* const values = keys + padded(params_.T * params_.D);
    type_ == FloatType::kBfloat16 ? copy_rounded(rows, keys, values) : copy(rows, keys, values);
    std::array<int32_t, kRowsPerTile> end;
    end.fill(static_cast<int32_t>(params_.T));
    std::array<const float*, kRowsPerTile> query;
    AttendBlock block{};
    block.D = params_.D;
    block.W = block.value_stride = width;
    block.query = query.data();
    block.cache_type = type_;
    block.keys = keys;
    block.values = values;
    block.end = params_.T;
    block.row_end = end.data();
    block.scale = params_.scale * kLog2E;
    block.scratch = scratch_of_thread(params_.D, width);
    for (int64_t first = 0; first < params_.T; first += kRowsPerTile) {
      block.rows = std::min(kRowsPerTile, params_.T - first);
      for (int64_t i = 0; i < kRowsPerTile; ++i) {
        query[static_cast<size_t>(i)] = rows + (first + std::min(i, block.rows - 1)) * 3 * row_;
      }
      functions_.many_rows(block);
      for (int64_t r = 0; r < block.rows; ++r) finish(block, r, output + (first + r) * row_);
    }
  }

 private:
  // keys [T, D]; values [T, padded(D)] with zeros behind D, so that they are whole vectors.
  void copy(const float* rows, float* keys, float* values) const {
    const int64_t D = params_.D, width = padded(D);
    for (int64_t t = 0; t < params_.T; ++t, rows += 3 * row_) {
      std::copy_n(rows + row_, D, keys + t * D);
      std::copy_n(rows + 2 * row_, D, values + t * width);
      std::fill_n(values + t * width + D, width - D, 0.0f);
    }
  }

  void copy_rounded(const float* rows, float* keys, float* values) const {
    const int64_t D = params_.D, width = padded(D);
    Bfloat16* key = reinterpret_cast<Bfloat16*>(keys);
    Bfloat16* value = reinterpret_cast<Bfloat16*>(values);
    for (int64_t t = 0; t < params_.T; ++t, rows += 3 * row_, key += D, value += width) {
      functions_.round(rows + row_, D, key);
      functions_.round(rows + 2 * row_, D, value);
      std::memset(value + D, 0, static_cast<size_t>(width - D) * sizeof *value);
    }
  }

  void finish(const AttendBlock& block, int64_t r, float* to) const {
    const float* from = block.scratch.output + r * block.W;
    const float factor = 1.0f / block.scratch.total[r];
    for (int64_t d = 0; d < params_.D; ++d) to[d] = from[d] * factor;
  }

  const VisionAttentionParams& params_;
  AttendFunctions functions_;
  FloatType type_;
  int64_t row_;  // floats of the queries, keys or values of a row
};

}  // namespace

void vision_attention_cpu(const VisionAttentionParams& params, const ParallelFor& parallel_for) {
  const Call call(params);
  run_phases({{params.B * params.N, [&](int64_t item) { call.run(item); }}}, parallel_for);
}

}  // namespace fastmmoe
