// SPDX-License-Identifier: Apache-2.0
// FmmAttention on the CPU.
#pragma once

#include "attention/params.h"
#include "common/parallel.h"

namespace fastmmoe {

/// Writes the outputs. query, key, value, sink_logits and output are float, the caches float or bfloat16. The
/// result is the same bit for bit for any number of threads, and a sequence's rows do not depend on B, C and
/// the other sequences. Products are of bfloat16 where the caches are and the processor has them; query and
/// weights are then rounded to it, too.
void attention_cpu(const AttentionParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
