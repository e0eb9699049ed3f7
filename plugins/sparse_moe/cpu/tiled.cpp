// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <string>

#include "common/cpu/panels/panels.h"
#include "common/cpu/scratch.h"
#include "common/divide.h"
#include "sparse_moe/cpu/experts.h"
#include "sparse_moe/cpu/rows.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

constexpr int64_t kTokensPerItem = 8;                       // rows of one work item that prepares them
constexpr int64_t kActivatedColumns = PanelRows::kGranule;  // of one work item of gate and up
// Columns of one work item of down. Many pairs are read again for each item, few leave threads without work.
constexpr int64_t kFewPairs = 64, kDownColumnsOfFew = 64, kMostDownColumns = 128;

PanelFormat panel_format(WeightFormat format) {
  if (format == WeightFormat::kInt4) return PanelFormat::kInt4;
  return format == WeightFormat::kInt8 ? PanelFormat::kInt8 : PanelFormat::kBfloat16;
}

// Matrices [outputs, columns] of all experts.
class ExpertMatrices {
 public:
  ExpertMatrices(const SparseMoeParams& params, const void* tiles, const PackedWeights& packed,
                 int64_t panels, int64_t columns)
      : first_{panel_format(params.attributes.weight_format),
               panels * kPanelOutputs,
               columns,
               params.attributes.group_size,
               tiles,
               packed.scale,
               packed.zero},
        tile_bytes_(panels * panel_bytes(first_.format, columns)),
        scales_(first_.group_size == 0 ? 0 : panels * divide_up(columns, first_.group_size) * kPanelOutputs),
        rows_(panel_rows(first_.format, columns, first_.group_size, params.is_exact)) {}

  PanelMatrix of(int64_t expert) const {
    PanelMatrix matrix = first_;
    matrix.tiles = static_cast<const std::byte*>(matrix.tiles) + expert * tile_bytes_;
    matrix.scale += expert * scales_;
    if (matrix.zero != nullptr) matrix.zero += expert * scales_;
    return matrix;
  }

  /// Of rows that are multiplied with them.
  const PanelRows& rows() const { return rows_; }

 private:
  PanelMatrix first_;  // of expert 0
  int64_t tile_bytes_, scales_;
  PanelRows rows_;
};

class TiledExperts {
 public:
  TiledExperts(const SparseMoeParams& params, const Plan& plan)
      : params_(params),
        plan_(plan),
        functions_(row_functions_for_this_cpu()),
        gate_up_(params, params.gate_up, params.gate_up_packed, 2 * divide_up(params.I, kPanelOutputs),
                 params.H),
        down_(params, params.down, params.down_packed, divide_up(params.H, kPanelOutputs), params.I),
        tokens_bytes_(params.T * gate_up_.rows().bytes),
        scratch_(static_cast<size_t>(tokens_bytes_ + pairs() * down_.rows().bytes), [&] {
          return "FmmSparseMoE: " + std::to_string(params.T) + " tokens and " + std::to_string(pairs()) +
                 " pairs of a token and an expert with H = " + std::to_string(params.H) +
                 ", I = " + std::to_string(params.I);
        }) {}

  void run(const ParallelFor& parallel_for) {
    const int64_t chunks = divide_up(params_.I, kActivatedColumns);
    const int64_t columns = pairs() <= kFewPairs ? kDownColumnsOfFew : kMostDownColumns;
    run_phases(
        {{divide_up(params_.T, kTokensPerItem), [&](int64_t item) { prepare_tokens(item * kTokensPerItem); }},
         {static_cast<int64_t>(plan_.blocks.size()) * chunks,
          [&](int64_t item) {
            gate_up_columns(plan_.blocks[item / chunks], item % chunks * kActivatedColumns);
          }},
         {divide_up(params_.H, columns), [&](int64_t item) { down_columns(item * columns, columns); }}},
        parallel_for);
  }

 private:
  using RowPointers = std::array<const std::byte*, kRowsPerBlock>;

  int64_t pairs() const { return static_cast<int64_t>(plan_.pairs.size()); }
  std::byte* token_row(int64_t token) const { return scratch_.data() + token * gate_up_.rows().bytes; }
  std::byte* pair_row(int64_t pair) const {
    return scratch_.data() + tokens_bytes_ + pair * down_.rows().bytes;
  }

  void prepare_tokens(int64_t first) const {
    for (int64_t t = first; t < std::min(first + kTokensPerItem, params_.T); ++t) {
      gate_up_.rows().prepare(params_.hidden_states + t * params_.H, 0, params_.H, token_row(t));
    }
  }

  // Activated columns from `first` on of the rows of a block, as rows of the down projection.
  void gate_up_columns(const RowBlock& block, int64_t first) const {
    const int64_t rows = block.end - block.begin, columns = std::min(kActivatedColumns, params_.I - first);
    RowPointers x;
    for (int64_t r = 0; r < rows; ++r) x[r] = token_row(plan_.pairs[block.begin + r].token);
    const PanelMatrix matrix = gate_up_.of(block.expert);
    std::array<float, kRowsPerBlock * 2 * kPanelOutputs> y;
    std::array<float, kRowsPerBlock * kActivatedColumns> activated;
    for (int64_t c = 0; c < columns; c += kPanelOutputs) {
      const int64_t panel = 2 * ((first + c) / kPanelOutputs);
      multiply_panels({&matrix, &gate_up_.rows(), panel, 2, x.data(), rows, y.data(), 2 * kPanelOutputs});
      const float* bias = params_.gate_up_bias == nullptr
                              ? nullptr
                              : params_.gate_up_bias + block.expert * 2 * params_.I + first + c;
      functions_.activate({params_.attributes.activation, params_.attributes.swiglu_limit, rows,
                           std::min(kPanelOutputs, columns - c), y.data(), y.data() + kPanelOutputs,
                           2 * kPanelOutputs, bias, bias == nullptr ? nullptr : bias + params_.I,
                           activated.data() + c, kActivatedColumns});
    }
    for (int64_t r = 0; r < rows; ++r) {
      down_.rows().prepare(&activated[r * kActivatedColumns], first, columns, pair_row(block.begin + r));
    }
  }

  // Columns of output from `first` on, of all tokens. One work item owns its columns and adds experts in
  // ascending order, so the sums do not depend on threads and need no buffer for each (token, expert).
  void down_columns(int64_t first, int64_t most) const {
    const int64_t H = params_.H, columns = std::min(most, H - first);
    for (int64_t t = 0; t < params_.T; ++t) std::fill_n(params_.output + t * H + first, columns, 0.0f);
    const int64_t panels = divide_up(columns, kPanelOutputs), stride = panels * kPanelOutputs;
    RowPointers x;
    std::array<float, kRowsPerBlock * kMostDownColumns> y;
    for (const RowBlock& block : plan_.blocks) {
      const int64_t rows = block.end - block.begin;
      for (int64_t r = 0; r < rows; ++r) x[r] = pair_row(block.begin + r);
      const PanelMatrix matrix = down_.of(block.expert);
      multiply_panels(
          {&matrix, &down_.rows(), first / kPanelOutputs, panels, x.data(), rows, y.data(), stride});
      const float* bias =
          params_.down_bias == nullptr ? nullptr : params_.down_bias + block.expert * H + first;
      for (int64_t r = 0; r < rows; ++r) {
        const Pair& pair = plan_.pairs[block.begin + r];
        functions_.add(&y[r * stride], bias, pair.weight, columns, params_.output + pair.token * H + first);
      }
    }
  }

  const SparseMoeParams& params_;
  const Plan& plan_;
  RowFunctions functions_;
  ExpertMatrices gate_up_, down_;
  int64_t tokens_bytes_;
  Scratch scratch_;
};

}  // namespace

void run_tiled_experts(const SparseMoeParams& params, const Plan& plan, const ParallelFor& parallel_for) {
  TiledExperts(params, plan).run(parallel_for);
}

}  // namespace fastmmoe
