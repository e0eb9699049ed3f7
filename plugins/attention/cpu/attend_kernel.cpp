// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function that could be
// shared with other files: the linker would then run one instruction set everywhere.
#include "attention/cpu/attend.h"
#include "attention/cpu/products.h"
#include "attention/cpu/units.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

static_assert(kKeysPerTile % 2 == 0 && kRowsPerTile % kLanes == 0 && kLanes <= kMostLanes);
static_assert(kKeysPerPart % kKeysPerTile == 0 && kKeysPerTile % (2 * kLanes) == 0);

constexpr int kTileVectors = kRowsPerTile / kLanes;
constexpr int kTilesPerPart = kKeysPerPart / kKeysPerTile;

// Positions of the keys of a tile, and which rows see them.
class Positions {
 public:
  explicit Positions(const AttendBlock& block) : block_(block) {
    if (!block.has_positions) return;
    for (int64_t r = 0; r < block.rows; ++r) {
      const int32_t first = block.first_position[r], last = block.last_position[r];
      if (r == 0 || first < least_first_) least_first_ = first;
      if (r == 0 || first > greatest_first_) greatest_first_ = first;
      if (r == 0 || last < least_last_) least_last_ = last;
      if (r == 0 || last > greatest_last_) greatest_last_ = last;
    }
  }

  // Reads those of key rows `first` to first + count. False: no row sees one of them.
  bool read(int64_t first, int64_t count) {
    if (!block_.has_positions) return true;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = first + i;
      values_[i] = j < block_.old_rows ? block_.old_positions[j] : block_.new_positions[j - block_.old_rows];
    }
    for (int64_t i = count; i < kKeysPerTile; ++i) values_[i] = values_[0];
    Ints least = load(values_), greatest = least;
    for (int64_t i = kLanes; i < kKeysPerTile; i += kLanes) {
      const Ints value = load(values_ + i);
      least = value < least ? value : least;
      greatest = value > greatest ? value : greatest;
    }
    int32_t low = least[0], high = greatest[0];
    for (int i = 1; i < kLanes; ++i) {
      low = least[i] < low ? least[i] : low;
      high = greatest[i] > high ? greatest[i] : high;
    }
    all_see_ = greatest_first_ <= low && high <= least_last_;
    return least_first_ <= high && low <= greatest_last_;
  }

  // Every row sees every key of the tile as far as positions go.
  bool all_see() const { return !block_.has_positions || all_see_; }

  // Of key i for rows from r on, or of keys from i on for row r.
  Ints rows_see(int64_t i, int64_t r) const {
    const Ints position = all(values_[i]);
    return (load(block_.first_position + r) <= position) & (position <= load(block_.last_position + r));
  }
  Ints row_sees(int64_t i, int64_t r) const {
    const Ints position = load(values_ + i);
    return (all(block_.first_position[r]) <= position) & (position <= all(block_.last_position[r]));
  }

 private:
  const AttendBlock& block_;
  int32_t least_first_ = 0, greatest_first_ = 0, least_last_ = 0, greatest_last_ = 0;
  int32_t values_[kKeysPerTile];
  bool all_see_ = true;
};

// Columns of values to output, for rows whose weights are given; units: of each block of kWeights rows.
template <typename Products, typename Columns>
void add_values(const AttendBlock& block, const ValueTile& weights, const Rows& values,
                const int64_t* units) {
  const int64_t stride = padded(block.W);
  const int64_t step = block.rows == 1 ? kManyVectors : kVectors, vectors = (block.W + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < vectors; v += step) {
    ValueTile tile = weights;
    tile.values = values.data + v * Columns::kFloatsPerVector;
    tile.value_stride = values.stride;
    for (int64_t r = 0; r < block.rows; r += kWeights) {
      tile.units = units[r / kWeights];
      if (tile.units == 0) continue;
      tile.weights = weights.weights + r * weights.row_stride;
      tile.rescale = weights.rescale + r;
      tile.output = block.scratch.output + r * stride + v * kLanes;
      tile.output_stride = stride;
      value_tile_of<Products, Columns, kWeights, kVectors>(block.rows - r, least_of(step, vectors - v), tile);
    }
  }
}

void clear(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

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
    clear(block_.scratch.output, block_.rows * padded(block_.W), 0.0f);
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
  // query [units, kRowsPerTile]; columns after the rows are 0.
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
          square[i] = rows[i] == nullptr ? Vector{} : load_part(rows[i] + u, count);
        transpose(square);
        for (int64_t i = 0; i < count; ++i) {
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
    tile.scale = block_.scale;
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
      if (block_.row_end[v * kLanes] < first_ + keys || !positions_.all_see()) mask(v, keys);
      const Vector before = load(block_.scratch.greatest + v * kLanes);
      Vector greatest = before;
      for (int64_t k = 0; k < keys; ++k) greatest = greater(load(scores + k * kRowsPerTile), greatest);
      rescale_[v] = power_of_two(before - greatest);
      const Vector sum = exponentiate(scores, keys, greatest);
      const Vector total = load(block_.scratch.total + v * kLanes) * rescale_[v] + sum;
      store(total, block_.scratch.total + v * kLanes);
      store(greatest, block_.scratch.greatest + v * kLanes);
    }
    for (int64_t u = Units<Products>::count(keys); u < Units<Products>::count(keys_); ++u) {
      store(Vector{}, scores + u * kRowsPerTile);
    }
  }

  // Scores to units of weights, in place; their sum.
  static Vector exponentiate(float* scores, int64_t keys, Vector greatest) {
    Vector sum = {};
    for (int64_t k = 0; k < keys; k += Products::kPerUnit) {
      Vector weight = power_of_two(load(scores + k * kRowsPerTile) - greatest);
      sum += weight;
      if constexpr (Products::kPerUnit == 2) {
        Vector second = {};
        if (k + 1 < keys) second = power_of_two(load(scores + (k + 1) * kRowsPerTile) - greatest);
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
  Vector rescale_[kTileVectors];
};

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
    const int64_t vectors = padded_vectors();
    is_seen_[t] = positions_.read(first, count);
    for (int64_t r = 0; r < block_.rows; ++r) clear(scores_of(r, t), kKeysPerTile, kMasked);
    if (!is_seen_[t]) return;
    const Rows keys = Units<Products>::keys(block_, true, first, count);
    for (int64_t k = 0; k < count; k += kLanes) {
      for (int64_t r = 0; r < block_.rows; ++r) {
        const float* query = block_.scratch.query + r * padded(Units<Products>::count(block_.D));
        const Vector scores =
            dot_products<Products>(keys.data + k * keys.stride, keys.stride, count - k, query, vectors) *
            block_.scale;
        const int64_t end = least_of(block_.end, block_.row_end[r]) - first - k;
        Ints sees = lane_numbers() < all(static_cast<int32_t>(end));
        if (block_.has_positions) sees &= positions_.row_sees(k, r);
        store(sees ? scores : all(kMasked), scores_of(r, t) + k);
      }
    }
  }

  int64_t padded_vectors() const { return (Units<Products>::count(block_.D) + kLanes - 1) / kLanes; }

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

  // Adds what need not be turned into units before, and says how many keys these were.
  int64_t add_whole_rows(const ValueTile& weights, int64_t first, int64_t count) {
#ifdef __AVX512BF16__
    if constexpr (Products::kPerUnit == 2) {
      if (block_.rows > kWeights || block_.W % (2 * kLanes) != 0 || block_.value_stride % 2 != 0) return 0;
      const int64_t units = count / 2;
      const Rows rows = Units<Products>::stored_values(block_, first);
      if (units > 0) add_values<Products, RowColumns>(block_, weights, rows, &units);
      return 2 * units;
    }
#endif
    return 0;
  }

  const AttendBlock& block_;
  Positions positions_;
  bool is_seen_[kTilesPerPart];
};

template <template <typename> class Rows>
void attend(const AttendBlock& block) {
#ifdef __AVX512BF16__
  if (block.cache_type == FloatType::kBfloat16) return Rows<Pairs>(block).run();
#endif
  Rows<Floats>(block).run();
}

}  // namespace

AttendFunctions attend_functions();  // attend.cpp names it
AttendFunctions attend_functions() { return {attend<FewRows>, attend<ManyRows>, round_floats}; }

}  // namespace fastmmoe::FASTMMOE_ISA
