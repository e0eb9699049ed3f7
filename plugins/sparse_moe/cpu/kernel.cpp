// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/kernel.h"

#include <limits>

#include "sparse_moe/cpu/experts.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

// Sizes within the contract's limits make no offset, in bytes, that wraps; where they did, this would not
// compile. Prepared rows take at most 5 bytes a column and a few lines; tiles are filled up to 16 outputs.
constexpr int64_t kMostFloats = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(float));
static_assert(kMostE * 2 * (kMostI + 16) * (kMostH + 16) <= kMostFloats, "gate_up and down");
static_assert(kMostT * 2 * (kMostH + 64) <= kMostFloats && kMostT * kMostE <= kMostFloats, "rows of tokens");
static_assert(kMostT * kMostTopK * 2 * (kMostI + 64) <= kMostFloats, "rows of pairs");
static_assert(kMostT <= std::numeric_limits<int32_t>::max(), "tokens of pairs");

}  // namespace

void sparse_moe_cpu(const SparseMoeParams& params, const ParallelFor& parallel_for) {
  const Plan plan = plan_experts(params, parallel_for);
  const bool is_tiled = params.attributes.weight_layout == WeightLayout::kTiles;
  (is_tiled ? run_tiled_experts : run_logical_experts)(params, plan, parallel_for);
}

}  // namespace fastmmoe
