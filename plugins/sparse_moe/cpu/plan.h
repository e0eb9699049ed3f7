// SPDX-License-Identifier: Apache-2.0
// Which rows go through which experts.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"
#include "sparse_moe/cpu/kernel.h"

namespace fastmmoe {

constexpr int64_t kRowsPerBlock = 128;  // rows that share one pass over an expert's weights

/// A token and one of its experts; pairs are sorted by expert, then token.
struct Pair {
  int32_t token;
  float weight;
};

/// Pairs begin to end of one expert.
struct RowBlock {
  int64_t expert, begin, end;
};

struct Plan {
  std::vector<Pair> pairs;       // of weights that are not 0
  std::vector<RowBlock> blocks;  // ascending by expert; those of one differ by at most one row
};

/// Chooses every token's experts and sorts what there is to compute.
Plan plan_experts(const SparseMoeParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
