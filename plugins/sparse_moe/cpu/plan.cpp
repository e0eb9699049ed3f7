// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/plan.h"

#include <algorithm>

#include "common/divide.h"
#include "sparse_moe/cpu/route.h"

namespace fastmmoe {
namespace {

constexpr int64_t kTokensPerItem = 32;

struct Routing {
  std::vector<int32_t> selected;  // [T, k]
  std::vector<float> weights;     // [T, k]
};

Routing route_tokens(const SparseMoeParams& params, const ParallelFor& parallel_for) {
  const int64_t k = params.attributes.top_k;
  Routing routing{std::vector<int32_t>(params.T * k), std::vector<float>(params.T * k)};
  std::vector<uint8_t> is_visual(params.T, 0);
  for (int64_t i = 0; i < params.V; ++i) is_visual[params.visual_index[i]] = 1;
  parallel_for(divide_up(params.T, kTokensPerItem), [&](int64_t item) {
    RouteScratch scratch;
    const int64_t end = std::min(params.T, (item + 1) * kTokensPerItem);
    for (int64_t t = item * kTokensPerItem; t < end; ++t) {
      route_token(params, t, is_visual[t] ? params.visual_top_k : k, scratch, &routing.selected[t * k],
                  &routing.weights[t * k]);
    }
  });
  return routing;
}

void add_blocks(int64_t expert, int64_t begin, int64_t end, std::vector<RowBlock>& blocks) {
  for (int64_t left = divide_up(end - begin, kRowsPerBlock); left > 0; --left) {
    const int64_t rows = (end - begin) / left;
    blocks.push_back({expert, begin, begin + rows});
    begin += rows;
  }
}

// Counting sort of the (token, expert) pairs; a pair of weight 0 is not computed.
Plan group_by_expert(const SparseMoeParams& params, const Routing& routing) {
  const int64_t k = params.attributes.top_k, slots = params.T * k;
  std::vector<int64_t> next(params.E + 1, 0);
  for (int64_t s = 0; s < slots; ++s) next[routing.selected[s] + 1] += routing.weights[s] != 0.0f;
  Plan plan;
  for (int64_t e = 0; e < params.E; ++e) {
    next[e + 1] += next[e];
    add_blocks(e, next[e], next[e + 1], plan.blocks);
  }
  plan.pairs.resize(next[params.E]);
  for (int64_t s = 0; s < slots; ++s) {
    if (routing.weights[s] == 0.0f) continue;
    plan.pairs[next[routing.selected[s]]++] = {static_cast<int32_t>(s / k), routing.weights[s]};
  }
  return plan;
}

}  // namespace

Plan plan_experts(const SparseMoeParams& params, const ParallelFor& parallel_for) {
  return group_by_expert(params, route_tokens(params, parallel_for));
}

}  // namespace fastmmoe
