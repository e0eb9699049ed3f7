// SPDX-License-Identifier: Apache-2.0
// FmmTokenPrune on the CPU.
#pragma once

#include "common/parallel.h"
#include "token_prune/params.h"

namespace fastmmoe {

/// Writes the four outputs; the same bit for bit for any number of threads. type must be kFloat. K = V
/// copies. Source: FastMMoE (arXiv 2511.17885). Ties: the smaller index. O(V E + V log V + T H).
void token_prune_cpu(const TokenPruneParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
