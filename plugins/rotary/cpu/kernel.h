// SPDX-License-Identifier: Apache-2.0
// FmmRotary on the CPU.
#pragma once

#include "common/parallel.h"
#include "rotary/params.h"

namespace fastmmoe {

/// Writes y. The result is the same bit for bit for any number of threads, and a head does not depend on the
/// others.
void rotary_cpu(const RotaryParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
