// SPDX-License-Identifier: Apache-2.0
// FmmVisionAttention on the CPU.
#pragma once

#include "common/parallel.h"
#include "vision_attention/params.h"

namespace fastmmoe {

/// Writes the output. It is the same bit for bit for any number of threads, and a tile's rows do not depend
/// on the other tiles. With compute bfloat16 products are of bfloat16 where the processor has units for them.
void vision_attention_cpu(const VisionAttentionParams& params, const ParallelFor& parallel_for);

}  // namespace fastmmoe
