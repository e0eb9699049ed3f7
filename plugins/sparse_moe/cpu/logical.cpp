// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <string>

#include "common/cpu/scratch.h"
#include "common/divide.h"
#include "sparse_moe/cpu/dequantise.h"
#include "sparse_moe/cpu/experts.h"
#include "sparse_moe/cpu/gemm.h"
#include "sparse_moe/cpu/rows.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

constexpr int64_t kOutputsPerItem = 32;  // columns of one work item
constexpr int64_t kBlockSize = kRowsPerBlock * kOutputsPerItem;

static_assert(kMostT * kMostTopK * (kMostI + kOutputsPerItem) <= INT64_MAX / int64_t{sizeof(float)},
              "activated, work items");

int64_t weight_size(FloatType type) { return type == FloatType::kFloat ? 4 : 2; }

// Weights [outputs, depth] of all experts, and their products with rows.
class Products {
 public:
  Products(const SparseMoeParams& params, const PackedWeights& packed, const void* weights, int64_t depth)
      : function_(gemm_block_for_this_cpu()),
        format_(params.attributes.weight_format),
        type_(params.weight_type),
        weights_(weights),
        depth_(depth),
        packed_{format_,      depth,      params.attributes.group_size, static_cast<const int8_t*>(weights),
                packed.scale, packed.zero} {}

  // x, y as in GemmBlock; uses `outputs` rows of weights from row `first` on.
  void compute(const float* const* x, int64_t rows, int64_t first, int64_t outputs, float* y) const {
    const int64_t floats = format_ == WeightFormat::kFloat ? kGemmScratchRows : kOutputsPerItem;
    const Scratch scratch(static_cast<size_t>(floats * depth_) * sizeof(float),
                          [] { return std::string("FmmSparseMoE: rows of weights"); });
    float* const wide = reinterpret_cast<float*>(scratch.data());
    if (format_ == WeightFormat::kFloat) {
      const char* from = static_cast<const char*>(weights_) + first * depth_ * weight_size(type_);
      return function_({rows, outputs, depth_, x, from, type_, wide, y});
    }
    for (int64_t o = 0; o < outputs; ++o) dequantise_row(packed_, first + o, wide + o * depth_);
    function_({rows, outputs, depth_, x, wide, FloatType::kFloat, nullptr, y});
  }

 private:
  GemmBlockFunction function_;
  WeightFormat format_;
  FloatType type_;
  const void* weights_;
  int64_t depth_;
  PackedRows packed_;
};

// activated [pairs, I], columns first to first + count of the rows of a block.
void gate_up_columns(const SparseMoeParams& params, const Plan& plan, const RowBlock& block, int64_t first,
                     float* activated) {
  const int64_t I = params.I, rows = block.end - block.begin;
  const int64_t count = std::min(kOutputsPerItem, I - first);
  std::array<const float*, kRowsPerBlock> x;
  for (int64_t r = 0; r < rows; ++r) {
    x[r] = params.hidden_states + plan.pairs[block.begin + r].token * params.H;
  }
  std::array<float, kBlockSize> gate, up;
  const Products products(params, params.gate_up_packed, params.gate_up, params.H);
  const int64_t gate_row = block.expert * 2 * I + first;
  products.compute(x.data(), rows, gate_row, count, gate.data());
  products.compute(x.data(), rows, gate_row + I, count, up.data());
  const float* bias = params.gate_up_bias == nullptr ? nullptr : params.gate_up_bias + gate_row;
  row_functions_for_this_cpu().activate(
      {params.attributes.activation, params.attributes.swiglu_limit, rows, count, gate.data(), up.data(),
       count, bias, bias == nullptr ? nullptr : bias + I, activated + block.begin * I + first, I});
}

// Columns first to first + count of output, of all tokens. One work item owns its columns and adds experts in
// ascending order, so the sums do not depend on threads and need no buffer for each (token, expert).
void down_columns(const SparseMoeParams& params, const Plan& plan, const float* activated, int64_t first) {
  const int64_t H = params.H, I = params.I, count = std::min(kOutputsPerItem, H - first);
  for (int64_t t = 0; t < params.T; ++t) std::fill_n(params.output + t * H + first, count, 0.0f);
  const Products products(params, params.down_packed, params.down, I);
  std::array<const float*, kRowsPerBlock> x;
  std::array<float, kBlockSize> y;
  const RowFunctions functions = row_functions_for_this_cpu();
  for (const RowBlock& block : plan.blocks) {
    const int64_t rows = block.end - block.begin, row = block.expert * H + first;
    for (int64_t r = 0; r < rows; ++r) x[r] = activated + (block.begin + r) * I;
    products.compute(x.data(), rows, row, count, y.data());
    const float* bias = params.down_bias == nullptr ? nullptr : params.down_bias + row;
    for (int64_t r = 0; r < rows; ++r) {
      const Pair& pair = plan.pairs[block.begin + r];
      functions.add(&y[r * count], bias, pair.weight, count, params.output + pair.token * H + first);
    }
  }
}

}  // namespace

void run_logical_experts(const SparseMoeParams& params, const Plan& plan, const ParallelFor& parallel_for) {
  const int64_t pairs = static_cast<int64_t>(plan.pairs.size());
  // [pairs, I]: each is written before it is read.
  const Scratch scratch(static_cast<size_t>(pairs * params.I) * sizeof(float), [&] {
    return "FmmSparseMoE: " + std::to_string(pairs) +
           " pairs of a token and an expert with I = " + std::to_string(params.I);
  });
  float* const activated = reinterpret_cast<float*>(scratch.data());
  const int64_t blocks = static_cast<int64_t>(plan.blocks.size());
  const int64_t columns = divide_up(params.I, kOutputsPerItem);
  parallel_for(blocks * columns, [&](int64_t item) {
    gate_up_columns(params, plan, plan.blocks[item / columns], item % columns * kOutputsPerItem, activated);
  });
  parallel_for(divide_up(params.H, kOutputsPerItem),
               [&](int64_t item) { down_columns(params, plan, activated, item * kOutputsPerItem); });
}

}  // namespace fastmmoe
