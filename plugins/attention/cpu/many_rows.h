// SPDX-License-Identifier: Apache-2.0
// Attention of many query rows.
#pragma once

#include "attention/cpu/add_values.h"
#include "attention/cpu/positions.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

static_assert(kKeysPerTile % 2 == 0 && kRowsPerTile % kLanes == 0);

// Many rows: a vector holds one key's scores of kLanes rows, so that neither keys nor scores are turned, and
// the number of keys of a tile may be any.
template <typename Products>
class ManyRows {
 public:
  explicit ManyRows(const AttendBlock& block)
      : block_(block), positions_(block), vectors_((block.rows + kLanes - 1) / kLanes) {}

  void run() {
    turn_query();
    clear(block_.scratch.greatest, kRowsPerTile, kNoScore);
    clear(block_.scratch.total, kRowsPerTile, 0.0f);
    clear(block_.scratch.output, vectors_ * kLanes * padded(block_.W), 0.0f);
    const int64_t end = least_of(block_.end, block_.row_end[block_.rows - 1]);
    for (int64_t j = block_.begin; j < end; j = first_ + keys_) {
      first_ = j;
      keys_ = least_of(end, (j / kKeysPerTile + 1) * kKeysPerTile) - j;
      if (!positions_.read(first_, keys_)) continue;
      score();
      for (int64_t v = 0; v < vectors_; ++v) weigh(v);
      add();
    }
  }

 private:
  // query [units, kRowsPerTile]; columns after the rows are 0, and units after the last of D up to whole
  // vectors.
  void turn_query() {
    const int64_t units = Units<Products>::count(block_.D), stride = padded(units);
    for (int64_t v = 0; v < vectors_; ++v) {
      const float* rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t r = v * kLanes + i;
        rows[i] = r < block_.rows ? Units<Products>::query(block_, r, block_.scratch.keys + i * stride).data
                                  : nullptr;
      }
      for (int64_t u = 0; u < units; u += kLanes) {
        const int64_t count = least_of(kLanes, units - u);
        Vector square[kLanes];
        for (int i = 0; i < kLanes; ++i)
          square[i] = rows[i] == nullptr ? Vector{} : load_some(rows[i] + u, count);
        transpose(square);
        for (int64_t i = 0; i < kLanes; ++i) {
          store(square[i], block_.scratch.query + (u + i) * kRowsPerTile + v * kLanes);
        }
      }
    }
  }

  // How many keys of the tile some row up to the last of vector v sees.
  int64_t keys_of(int64_t last_row) const {
    const int64_t keys = block_.row_end[last_row] - first_;
    return keys < 0 ? 0 : least_of(keys, keys_);
  }

  void score() {
    const Rows keys = Units<Products>::keys(block_, false, first_, keys_);
    ScoreTile tile{};
    tile.key_stride = keys.stride;
    tile.units = Units<Products>::count(block_.D);
    int64_t from = 0;
    for (int64_t k = 0; k < keys_; k += kKeys) {
      while (keys_of((from + 1) * kLanes - 1) <= k) ++from;
      tile.keys = keys.data + k * keys.stride;
      for (int64_t v = from; v < vectors_; v += kVectors) {
        tile.query = block_.scratch.query + v * kLanes;
        tile.scores = block_.scratch.scores + k * kRowsPerTile + v * kLanes;
        score_tile_of<Products, kKeys, kVectors>(keys_ - k, vectors_ - v, tile);
      }
    }
  }

  void mask(int64_t v, int64_t keys) {
    const Ints end = load(block_.row_end + v * kLanes);
    for (int64_t k = 0; k < keys; ++k) {
      Ints sees = all(static_cast<int32_t>(first_ + k)) < end;
      if (block_.has_positions) sees &= positions_.rows_see(k, v * kLanes);
      float* scores = block_.scratch.scores + k * kRowsPerTile + v * kLanes;
      store(sees ? load(scores) : all(kMasked), scores);
    }
  }

  // From the scores of kLanes rows to their weights; all keys of the tile have some then.
  void weigh(int64_t v) {
    const int64_t keys = keys_of((v + 1) * kLanes - 1);
    float* const scores = block_.scratch.scores + v * kLanes;
    rescale_[v] = all(1.0f);
    if (keys > 0) {
      const float scale = ordered(scores, keys);
      if (block_.row_end[v * kLanes] < first_ + keys || !positions_.all_see()) mask(v, keys);
      const Vector before = load(block_.scratch.greatest + v * kLanes);
      Vector greatest = all(kMasked);
      for (int64_t k = 0; k < keys; ++k) greatest = greater(load(scores + k * kRowsPerTile), greatest);
      greatest = greater(greatest * scale, before);
      rescale_[v] = power_of_two(before - greatest);
      const Vector sum = exponentiate(scores, keys, scale, greatest);
      const Vector total = load(block_.scratch.total + v * kLanes) * rescale_[v] + sum;
      store(total, block_.scratch.total + v * kLanes);
      store(greatest, block_.scratch.greatest + v * kLanes);
    }
    for (int64_t u = Units<Products>::count(keys); u < Units<Products>::count(keys_); ++u) {
      store(Vector{}, scores + u * kRowsPerTile);
    }
  }

  // The factor that scores still need, greater than 0: it does not change which is greatest.
  float ordered(float* scores, int64_t keys) const {
    if (block_.scale > 0.0f) return block_.scale;
    for (int64_t k = 0; k < keys; ++k) {
      store(load(scores + k * kRowsPerTile) * block_.scale, scores + k * kRowsPerTile);
    }
    return 1.0f;
  }

  // Scores to units of weights, in place; their sum.
  static Vector exponentiate(float* scores, int64_t keys, float scale, Vector greatest) {
    Vector sum = {};
    for (int64_t k = 0; k < keys; k += Products::kPerUnit) {
      Vector weight = power_of_two(load(scores + k * kRowsPerTile) * scale - greatest);
      sum += weight;
      if constexpr (Products::kPerUnit == 2) {
        Vector second = {};
        if (k + 1 < keys) second = power_of_two(load(scores + (k + 1) * kRowsPerTile) * scale - greatest);
        sum += second;
        weight = Products::pair(weight, second);
      }
      store(weight, scores + k / Products::kPerUnit * kRowsPerTile);
    }
    return sum;
  }

  void add() {
    float rescale[kRowsPerTile];
    for (int64_t v = 0; v < vectors_; ++v) store(rescale_[v], rescale + v * kLanes);
    int64_t units[kRowsPerTile / kWeights + 1];
    for (int64_t r = 0; r < block_.rows; r += kWeights) {
      units[r / kWeights] = Units<Products>::count(keys_of(least_of(r + kWeights, block_.rows) - 1));
    }
    ValueTile weights{};
    weights.weights = block_.scratch.scores;
    weights.unit_stride = kRowsPerTile;
    weights.row_stride = 1;
    weights.rescale = rescale;
    add_values<Products, UnitColumns>(block_, weights, Units<Products>::values(block_, first_, keys_), units);
  }

  const AttendBlock& block_;
  Positions positions_;
  int64_t vectors_;
  int64_t first_ = 0, keys_ = 0;  // the tile
  Vector rescale_[kRowsPerTile / kLanes];
};

}  // namespace
}  // namespace fastmmoe::FASTMMOE_ISA
