// SPDX-License-Identifier: Apache-2.0
// The experts' products, by the order in which their weights lie.
#pragma once

#include "sparse_moe/cpu/plan.h"

namespace fastmmoe {

/// Writes output; weights are rows of floats, or of integers and fp8, which become floats row by row.
void run_logical_experts(const SparseMoeParams& params, const Plan& plan, const ParallelFor& parallel_for);

/// Writes output; weights are in tile order.
void run_tiled_experts(const SparseMoeParams& params, const Plan& plan, const ParallelFor& parallel_for);

}  // namespace fastmmoe
