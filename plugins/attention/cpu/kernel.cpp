// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/kernel.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "attention/cpu/attend.h"
#include "attention/cpu/caches.h"
#include "attention/cpu/plan.h"
#include "attention/cpu/scratch.h"
#include "common/divide.h"

namespace fastmmoe {
namespace {

using namespace attention;

// Sizes within the contract's limits make no offset, in bytes, that wraps; where they did, this would not
// compile.
constexpr int64_t kMostFloats = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(float));
static_assert(kMostB * kMostK * kMostC <= kMostFloats / kMostD, "keys");
static_assert(kMostB * kMostK * kMostC <= kMostFloats / kMostW, "values");
static_assert(kMostT * kMostN <= kMostFloats / std::max(kMostD, kMostW), "rows of the call");
static_assert(kMostA * kMostK * (kMostC / kKeysPerPart + 1) <=
                  kMostFloats / kRowsPerTile / (kMostW + kMostLanes),
              "parts, work items");
static_assert(kMostC <= std::numeric_limits<int32_t>::max() - kKeysPerPart, "rows of a cache");

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// Softmax and sums of one row over some of its keys.
struct Partial {
  float greatest, total;
  float* output;  // [W]
};

// The parts of a key head of a sequence: [parts, rows, 2 + W], and how many are not done.
struct Parts {
  float* results;
  std::atomic<int64_t> left;
};

class Call {
 public:
  Call(const AttentionParams& params, const Plan& plan)
      : params_(params),
        plan_(plan),
        functions_(attend_for_this_cpu()),
        group_(params.N / params.K),
        parts_(new Parts[plan.sequences.size() * static_cast<size_t>(params.K)]) {
    thread_local ThreadMemory memory;
    float* next = memory.reserve(floats_of_parts());
    for (size_t a = 0; a < plan.sequences.size(); ++a) {
      const PlannedSequence& sequence = plan.sequences[a];
      for (int64_t k = 0; k < params.K; ++k) {
        Parts& parts = parts_of(sequence, k);
        parts.results = next;
        parts.left = sequence.parts;
        next += floats_of_parts(sequence);
      }
    }
  }

  void write_rows_of_tiles(int64_t item) const {
    const int64_t end = std::min(params_.T, (item + 1) * kRowsPerTile);
    for (int64_t t = item * kRowsPerTile; t < end;) {
      const PlannedSequence& sequence = sequence_at(t);
      const int64_t next = std::min(end, sequence.first + sequence.length);
      const int64_t shift = sequence.past - sequence.first;
      // Row by row, in which order the inputs are: heads of a row follow each other there.
      for (int64_t j = t + shift; j < next + shift && sequence.tiles > 0; ++j) {
        for (int64_t k = 0; k < params_.K; ++k) write_rows(params_, sequence, j, j + 1, k, functions_.round);
      }
      t = next;
    }
  }

  void run(int64_t item) const {
    const PlannedSequence& sequence = plan_.sequence_of(item);
    const int64_t place = item - sequence.first_item;
    if (sequence.tiles > 0) {
      // The last rows see most keys; they come first, so that threads end together.
      run_tile(sequence, place / sequence.tiles, sequence.tiles - 1 - place % sequence.tiles);
    } else {
      run_part(sequence, place / sequence.parts, place % sequence.parts);
    }
  }

 private:
  // What a block points to.
  struct Rows {
    std::array<const float*, kRowsPerTile> query;
    std::array<int32_t, kRowsPerTile> end, first_position, last_position;
  };

  int64_t floats_of_row() const { return 2 + params_.W; }
  int64_t floats_of_parts(const PlannedSequence& sequence) const {
    return sequence.parts > 1 ? sequence.parts * sequence.length * group_ * floats_of_row() : 0;
  }
  int64_t floats_of_parts() const {
    int64_t floats = 0;
    for (const PlannedSequence& sequence : plan_.sequences) floats += params_.K * floats_of_parts(sequence);
    return floats;
  }
  Parts& parts_of(const PlannedSequence& sequence, int64_t k) const {
    return parts_[static_cast<size_t>((&sequence - plan_.sequences.data()) * params_.K + k)];
  }
  const PlannedSequence& sequence_at(int64_t t) const {
    const int32_t* offsets = params_.sequence_offsets;
    const int32_t* next = std::upper_bound(offsets, offsets + params_.A, static_cast<int32_t>(t));
    return plan_.sequences[static_cast<size_t>(next - offsets - 1)];
  }

  // Row r of a sequence and key head: its row of the call, and its head.
  struct Place {
    int64_t row, n;
  };
  Place place_of(const PlannedSequence& sequence, int64_t k, int64_t r) const {
    return {sequence.first + r / group_, k * group_ + r % group_};
  }

  AttendBlock make_block(const PlannedSequence& sequence, int64_t k, int64_t first, int64_t count,
                         Rows& rows) const {
    for (int64_t i = 0; i < kRowsPerTile; ++i) {
      const Place place = place_of(sequence, k, first + std::min(i, count - 1));
      rows.query[i] =
          static_cast<const float*>(params_.query) + (place.row * params_.N + place.n) * params_.D;
      rows.end[i] = static_cast<int32_t>(sequence.past + place.row - sequence.first + 1);
      if (params_.attributes.window == 0) continue;
      rows.last_position[i] = params_.position_ids[place.row];
      rows.first_position[i] = first_position_of(rows.last_position[i], params_.attributes.window);
    }
    AttendBlock block{};
    block.rows = count;
    block.D = params_.D;
    block.W = params_.W;
    block.query = rows.query.data();
    block.cache_type = params_.cache_type;
    block.keys = cached_keys(params_, sequence.cache, k);
    block.values = cached_values(params_, sequence.cache, k);
    block.value_stride = params_.present_value == nullptr ? params_.D : params_.W;
    block.row_end = rows.end.data();
    block.has_positions = params_.attributes.window > 0;
    if (block.has_positions) {
      block.first_position = rows.first_position.data();
      block.last_position = rows.last_position.data();
      block.old_positions = params_.past_position_ids + sequence.cache * params_.C;
      block.old_rows = sequence.past;
      block.new_positions = params_.position_ids + sequence.first;
    }
    block.scale = params_.attributes.scale * kLog2E;
    block.scratch = scratch_of_thread(params_.D, params_.W);
    return block;
  }

  void run_tile(const PlannedSequence& sequence, int64_t k, int64_t tile) const {
    const int64_t first = tile * kRowsPerTile;
    Rows rows;
    AttendBlock block =
        make_block(sequence, k, first, std::min(kRowsPerTile, sequence.length * group_ - first), rows);
    block.begin = sequence.begin;
    block.end = sequence.past + sequence.length;
    functions_.many_rows(block);
    for (int64_t r = 0; r < block.rows; ++r) finish(place_of(sequence, k, first + r), result(block, r));
  }

  void run_part(const PlannedSequence& sequence, int64_t k, int64_t part) const {
    Rows rows;
    AttendBlock block = make_block(sequence, k, 0, sequence.length * group_, rows);
    block.begin = begin_of_part(sequence, part);
    block.end = std::min(begin_of_part(sequence, part + 1), sequence.past + sequence.length);
    write_rows(params_, sequence, block.begin, block.end, k, functions_.round);
    (block.rows <= kFewRows ? functions_.few_rows : functions_.many_rows)(block);
    if (sequence.parts == 1) {
      for (int64_t r = 0; r < block.rows; ++r) finish(place_of(sequence, k, r), result(block, r));
      return;
    }
    Parts& parts = parts_of(sequence, k);
    for (int64_t r = 0; r < block.rows; ++r) {
      const Partial from = result(block, r);
      float* to = parts.results + (part * block.rows + r) * floats_of_row();
      to[0] = from.greatest;
      to[1] = from.total;
      std::copy_n(from.output, params_.W, to + 2);
    }
    if (parts.left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int64_t r = 0; r < block.rows; ++r) {  // whoever ends last adds all, from the first part on
      finish(place_of(sequence, k, r), joined(parts, sequence.parts, block.rows, r, result(block, r).output));
    }
  }

  static Partial result(const AttendBlock& block, int64_t r) {
    return {block.scratch.greatest[r], block.scratch.total[r], block.scratch.output + r * padded(block.W)};
  }

  Partial joined(const Parts& parts, int64_t count, int64_t rows, int64_t r, float* output) const {
    const auto of = [&](int64_t part) { return parts.results + (part * rows + r) * floats_of_row(); };
    Partial sum{of(0)[0], 0.0f, output};
    for (int64_t part = 1; part < count; ++part) sum.greatest = std::max(sum.greatest, of(part)[0]);
    std::fill_n(output, params_.W, 0.0f);
    for (int64_t part = 0; part < count; ++part) {
      const float* from = of(part);
      const float factor = std::exp2(from[0] - sum.greatest);
      sum.total += from[1] * factor;
      for (int64_t w = 0; w < params_.W; ++w) output[w] += from[2 + w] * factor;
    }
    return sum;
  }

  // Divides by what the softmax divides by.
  void finish(Place place, const Partial& from) const {
    float greatest = from.greatest, total = from.total, factor = 1.0f;
    if (params_.attributes.has_sinks) {
      const float sink = static_cast<const float*>(params_.sink_logits)[place.n] * kLog2E;
      greatest = std::max(greatest, sink);
      factor = std::exp2(from.greatest - greatest);
      total = total * factor + std::exp2(sink - greatest);
    }
    factor /= total;
    float* to = static_cast<float*>(params_.output) + (place.row * params_.N + place.n) * params_.W;
    for (int64_t w = 0; w < params_.W; ++w) to[w] = from.output[w] * factor;
    if (params_.lse != nullptr) {
      params_.lse[place.row * params_.N + place.n] = greatest * kLn2 + std::log(total);
    }
  }

  const AttentionParams& params_;
  const Plan& plan_;
  AttendFunctions functions_;
  int64_t group_;
  std::unique_ptr<Parts[]> parts_;
};

}  // namespace

void attention_cpu(const AttentionParams& params, const ParallelFor& parallel_for) {
  copy_caches(params, parallel_for);
  const Plan plan = plan_attention(params);
  const Call call(params, plan);
  run_phases({{plan.has_tiles ? divide_up(params.T, kRowsPerTile) : 0,
               [&](int64_t item) { call.write_rows_of_tiles(item); }},
              {plan.items, [&](int64_t item) { call.run(item); }}},
             parallel_for);
}

}  // namespace fastmmoe
