// SPDX-License-Identifier: Apache-2.0
// Attention of few query rows.
#pragma once

#include "attention/cpu/add_values.h"
#include "attention/cpu/positions.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

static_assert(kKeysPerPart % kKeysPerTile == 0 && kKeysPerTile % (2 * kLanes) == 0);

constexpr int64_t kRowsAsStored = 4;
static_assert(kRowsAsStored <= kWeights);

// Few rows: a vector lies along D, so that each key is read once, as it is, and no lanes are idle.
template <typename Products>
class FewRows {
 public:
  explicit FewRows(const AttendBlock& block) : block_(block), positions_(block) {}

  void run() {
    const int64_t tiles = (block_.end - block_.begin + kKeysPerTile - 1) / kKeysPerTile;
    const int64_t stride = padded(Units<Products>::count(block_.D));
    for (int64_t r = 0; r < block_.rows; ++r) {
      float* to = block_.scratch.query + r * stride;
      const float* from = Units<Products>::query(block_, r, to).data;
      if (from != to) as_floats(from, 0, 1, block_.D, to);
    }
    for (int64_t t = 0; t < tiles; ++t) score(t);
    for (int64_t r = 0; r < block_.rows; ++r) weigh(r, tiles * kKeysPerTile);
    clear(block_.scratch.output, block_.rows * padded(block_.W), 0.0f);
    for (int64_t t = 0; t < tiles; ++t) add(t);
  }

 private:
  int64_t keys_of(int64_t tile) const {
    return least_of(kKeysPerTile, block_.end - block_.begin - tile * kKeysPerTile);
  }
  float* scores_of(int64_t row, int64_t tile) const {
    return block_.scratch.scores + row * kKeysPerPart + tile * kKeysPerTile;
  }

  void score(int64_t t) {
    const int64_t first = block_.begin + t * kKeysPerTile, count = keys_of(t);
    is_seen_[t] = positions_.read(first, count);
    for (int64_t r = 0; r < block_.rows; ++r) clear(scores_of(r, t), kKeysPerTile, kMasked);
    if (!is_seen_[t]) return;
    if (reads_as_stored(block_.D, block_.D)) {
      score_keys(static_cast<const Bfloat16*>(block_.keys) + first * block_.D, block_.D, t, count);
    } else {
      const Rows keys = Units<Products>::keys(block_, true, first, count);
      score_keys(keys.data, keys.stride, t, count);
    }
  }

  // Whether rows of bfloat16 are made float each time that they are read: for few query rows that is less
  // work than to store them as float.
  bool reads_as_stored(int64_t width, int64_t stride) const {
    return Products::kPerUnit == 1 && block_.cache_type == FloatType::kBfloat16 && width % kLanes == 0 &&
           stride % 2 == 0 && block_.rows <= kRowsAsStored;
  }

  template <typename Key>
  void score_keys(const Key* keys, int64_t stride, int64_t t, int64_t count) {
    const int64_t first = block_.begin + t * kKeysPerTile;
    for (int64_t k = 0; k < count; k += kLanes) {
      for (int64_t r = 0; r < block_.rows; ++r) {
        const float* query = block_.scratch.query + r * padded(Units<Products>::count(block_.D));
        const Vector scores =
            dot_products<Products>(keys + k * stride, stride, count - k, query, query_vectors()) *
            block_.scale;
        const int64_t end = least_of(block_.end, block_.row_end[r]) - first - k;
        Ints sees = lane_numbers() < all(static_cast<int32_t>(end));
        if (block_.has_positions) sees &= positions_.row_sees(k, r);
        store(sees ? scores : all(kMasked), scores_of(r, t) + k);
      }
    }
  }

  int64_t query_vectors() const { return (Units<Products>::count(block_.D) + kLanes - 1) / kLanes; }

  static Ints lane_numbers() {
    Ints numbers;
    for (int i = 0; i < kLanes; ++i) numbers[i] = i;
    return numbers;
  }

  void weigh(int64_t r, int64_t keys) {
    float* const scores = scores_of(r, 0);
    Vector most = all(kNoScore);
    for (int64_t k = 0; k < keys; k += kLanes) most = greater(load(scores + k), most);
    const float greatest = greatest_of(most);
    Vector sum = {};
    for (int64_t k = 0; k < keys; k += kLanes * Products::kPerUnit) {
      Vector weight = power_of_two(load(scores + k) - greatest);
      sum += weight;
      if constexpr (Products::kPerUnit == 2) {
        const Vector second = power_of_two(load(scores + k + kLanes) - greatest);
        sum += second;
        weight = Products::join(weight, second);
      }
      store(weight, scores + k / Products::kPerUnit);
    }
    block_.scratch.greatest[r] = greatest;
    block_.scratch.total[r] = sum_of(sum);
  }

  void add(int64_t t) {
    if (!is_seen_[t]) return;
    const int64_t count = keys_of(t);
    float rescale[kFewRows];
    clear(rescale, kFewRows, 1.0f);
    ValueTile weights{};
    weights.weights = block_.scratch.scores + t * kKeysPerTile / Products::kPerUnit;
    weights.unit_stride = 1;
    weights.row_stride = kKeysPerPart;
    weights.rescale = rescale;
    int64_t first = block_.begin + t * kKeysPerTile;
    const int64_t whole = add_whole_rows(weights, first, count);
    if (whole == count) return;
    weights.weights += whole / Products::kPerUnit;
    int64_t units[kFewRows / kWeights + 1];
    for (int64_t& unit : units) unit = Units<Products>::count(count - whole);
    const Rows values = Units<Products>::values(block_, first + whole, count - whole);
    add_values<Products, UnitColumns>(block_, weights, values, units);
  }

  // Adds what is read as it is stored, and says how many keys these were.
  int64_t add_whole_rows(const ValueTile& weights, int64_t first, int64_t count) {
    const Rows rows = stored_values(block_, first);
    if constexpr (Products::kPerUnit == 1) {
      if (!reads_as_stored(block_.W, block_.value_stride)) return 0;
      add_values<Products, WideColumns>(block_, weights, rows, &count);
      return count;
#ifdef __AVX512BF16__
    } else {
      if (block_.rows > kWeights || block_.W % (2 * kLanes) != 0 || block_.value_stride % 2 != 0) return 0;
      const int64_t units = count / 2;
      if (units > 0) add_values<Products, RowColumns>(block_, weights, rows, &units);
      return 2 * units;
#endif
    }
  }

  const AttendBlock& block_;
  Positions positions_;
  bool is_seen_[kKeysPerPart / kKeysPerTile];
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
