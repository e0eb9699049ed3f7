// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "sparse_moe/cpu/kernel.h"

namespace fastmmoe {

/// Working memory of route_token, reused from token to token.
struct RouteScratch {
  std::vector<float> scores;        // [E]
  std::vector<float> choice;        // [E], scores by which experts are chosen
  std::vector<float> group_scores;  // [n_group]
  std::vector<int32_t> groups;      // [topk_group]
};

/// Chooses the experts of one token, best first, and their weights; columns from `used` on get weight 0.
///
/// selected [k] int32, weights [k] float; `used` = visual_top_k for a visual token, else k. Ties: the smaller
/// expert. NaN scores come last. Source: MoEGate of the official DeepSeek-VL2 code; Qwen3MoeTopKRouter and
/// GptOssTopKRouter of transformers; expert activation reduction of FastMMoE (arXiv 2511.17885).
void route_token(const SparseMoeParams& params, int64_t token, int64_t used, RouteScratch& scratch,
                 int32_t* selected, float* weights);

}  // namespace fastmmoe
