// SPDX-License-Identifier: Apache-2.0
#include "linear/cpu/kernel.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "common/cpu/panels/panels.h"
#include "common/cpu/scratch.h"
#include "common/divide.h"
#include "linear/cpu/finish.h"
#include "sparse_moe/cpu/dequantise.h"
#include "sparse_moe/cpu/gemm.h"

namespace fastmmoe {
namespace {

using namespace linear;

static_assert(kPanel == kPanelOutputs);
static_assert(kMostN * kMostK < INT64_MAX / 4 && kMostT * kMostK < INT64_MAX / 8);

constexpr int64_t kRowsPerBlock = 64;  // of floating-point weights as they are, and the most of panels
// Of the weights of a work item: few enough for all threads to have work in a decode step, more than a panel
// of few columns, and as much as can be read in a row. Of rows that are prepared: they stay in a core's cache
// for all panels of an item.
constexpr int64_t kLeastItemBytes = 32 << 10, kMostItemBytes = 256 << 10, kItemsOfMatrix = 32;
constexpr int64_t kBlockBytes = 512 << 10;
constexpr int64_t kRowsPerPreparation = 4;
constexpr int64_t kPanelsAtOnce = 2;

PanelFormat panel_format(WeightFormat format) {
  if (format == WeightFormat::kInt4) return PanelFormat::kInt4;
  return format == WeightFormat::kInt8 ? PanelFormat::kInt8 : PanelFormat::kBfloat16;
}

// The weights in tiles: rows are prepared once for all panels.
class TiledLinear {
 public:
  explicit TiledLinear(const LinearParams& params)
      : params_(params),
        matrix_{panel_format(params.attributes.weight_format),
                params.N,
                params.K,
                params.attributes.group_size,
                params.weight,
                params.scale,
                params.zero},
        layout_(panel_rows(matrix_.format, params.K, matrix_.group_size, params.is_exact)),
        panels_(divide_up(params.N, kPanel)),
        panels_per_item_(params.T < kRowsPerBlock ? panels_of_few_rows()
                                                  : panels_of(kLeastItemBytes, kPanelsAtOnce)),
        rows_per_block_(std::clamp<int64_t>(kBlockBytes / layout_.bytes, 1, kRowsPerBlock)),
        rows_(static_cast<size_t>(params.T * layout_.bytes), [&] {
          return "FmmLinear: " + std::to_string(params.T) + " rows of " + std::to_string(params.K) +
                 " columns";
        }) {}

  void run(const ParallelFor& parallel_for) {
    const int64_t ranges = divide_up(panels_, panels_per_item_);
    run_phases({{divide_up(params_.T, kRowsPerPreparation), [&](int64_t item) { prepare(item); }},
                {divide_up(params_.T, rows_per_block_) * ranges,
                 [&](int64_t item) {
                   multiply(item / ranges * rows_per_block_, item % ranges * panels_per_item_);
                 }}},
               parallel_for);
  }

 private:
  int64_t panels_of(int64_t bytes, int64_t least) const {
    return std::max(least, bytes / panel_bytes(matrix_.format, params_.K));
  }
  int64_t panels_of_few_rows() const {
    const int64_t share = panels_ * panel_bytes(matrix_.format, params_.K) / kItemsOfMatrix;
    return panels_of(std::clamp(share, kLeastItemBytes, kMostItemBytes), 1);
  }

  std::byte* row(int64_t t) const { return rows_.data() + t * layout_.bytes; }

  void prepare(int64_t item) const {
    const int64_t end = std::min(params_.T, (item + 1) * kRowsPerPreparation);
    for (int64_t t = item * kRowsPerPreparation; t < end; ++t) {
      layout_.prepare(params_.x + t * params_.K, 0, params_.K, row(t));
    }
  }

  // A block of rows times the panels of an item, some at a time: their sums stay in the first cache until
  // they are finished, while rows of y may lie so far apart that few of them do.
  void multiply(int64_t first_row, int64_t first_panel) const {
    const int64_t count = std::min(rows_per_block_, params_.T - first_row);
    std::array<const std::byte*, kRowsPerBlock> rows;
    for (int64_t r = 0; r < count; ++r) rows[r] = row(first_row + r);
    const int64_t end = std::min(first_panel + panels_per_item_, panels_);
    alignas(64) std::array<float, kRowsPerBlock * kPanelsAtOnce * kPanel> sums;
    for (int64_t panel = first_panel; panel < end; panel += kPanelsAtOnce) {
      const int64_t panels = std::min(kPanelsAtOnce, end - panel), first = panel * kPanel;
      multiply_panels({&matrix_, &layout_, panel, panels, rows.data(), count, sums.data(), panels * kPanel});
      finish_({sums.data(), panels * kPanel, count, std::min(panels * kPanel, params_.N - first),
               params_.attributes.activation, params_.bias == nullptr ? nullptr : params_.bias + first,
               params_.residual == nullptr ? nullptr : params_.residual + first_row * params_.N + first,
               params_.y + first_row * params_.N + first, params_.N});
    }
  }

  const LinearParams& params_;
  PanelMatrix matrix_;
  PanelRows layout_;
  FinishFunction finish_ = finish_for_this_cpu();
  int64_t panels_, panels_per_item_, rows_per_block_;
  Scratch rows_;  // [T, layout_.bytes]
};

// `outputs` rows of integers from `first` on, as floats.
std::vector<float> dequantise(const LinearParams& params, int64_t first, int64_t outputs) {
  const LinearAttributes& attributes = params.attributes;
  const bool is_int4 = attributes.weight_format == WeightFormat::kInt4;
  const PackedRows rows{is_int4 ? sparse_moe::WeightFormat::kInt4 : sparse_moe::WeightFormat::kInt8,
                        params.K,
                        attributes.group_size,
                        static_cast<const int8_t*>(params.weight),
                        params.scale,
                        params.zero};
  std::vector<float> floats(outputs * params.K);
  for (int64_t o = 0; o < outputs; ++o) dequantise_row(rows, first + o, &floats[o * params.K]);
  return floats;
}

// 16 columns of y from `first` on, for all rows, with weights in rows.
void multiply_logical(const LinearParams& params, int64_t first) {
  const int64_t outputs = std::min<int64_t>(kPanel, params.N - first);
  const bool is_packed = params.attributes.weight_format != WeightFormat::kFloat;
  const FloatType type = is_packed ? FloatType::kFloat : params.weight_type;
  const std::vector<float> floats = is_packed ? dequantise(params, first, outputs) : std::vector<float>();
  const int64_t bytes = type == FloatType::kFloat ? 4 : 2;
  const void* w = is_packed ? static_cast<const void*>(floats.data())
                            : static_cast<const char*>(params.weight) + first * params.K * bytes;
  std::vector<float> scratch(type == FloatType::kFloat ? 0 : kGemmScratchRows * params.K);
  std::array<const float*, kRowsPerBlock> x;
  std::array<float, kRowsPerBlock * kPanel> block;
  for (int64_t begin = 0; begin < params.T; begin += kRowsPerBlock) {
    const int64_t rows = std::min(kRowsPerBlock, params.T - begin);
    for (int64_t r = 0; r < rows; ++r) x[r] = params.x + (begin + r) * params.K;
    gemm_block_for_this_cpu()({rows, outputs, params.K, x.data(), w, type, scratch.data(), block.data()});
    finish_for_this_cpu()({block.data(), outputs, rows, outputs, params.attributes.activation,
                           params.bias == nullptr ? nullptr : params.bias + first,
                           params.residual == nullptr ? nullptr : params.residual + begin * params.N + first,
                           params.y + begin * params.N + first, params.N});
  }
}

}  // namespace

void linear_cpu(const LinearParams& params, const ParallelFor& parallel_for) {
  if (params.T == 0) return;
  if (params.attributes.weight_layout == WeightLayout::kTiles) {
    TiledLinear(params).run(parallel_for);
  } else {
    parallel_for(divide_up(params.N, kPanel), [&](int64_t item) { multiply_logical(params, item * kPanel); });
  }
}

}  // namespace fastmmoe
