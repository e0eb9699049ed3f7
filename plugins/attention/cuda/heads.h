// SPDX-License-Identifier: Apache-2.0
// The kernels, one file for each kind of heads: each takes a while to compile.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/params.h"

namespace fastmmoe::attention {

struct Seen;

/// Splits of `keys` keys, and what is left of each: [count, T, N].
struct Splits {
  int count, keys;
  Seen* seen;
  float* sums;  // [count, T, N, W]; null where there is one split, which writes the output
};

/// For few rows. Where there is more than one split, combine_splits is next.
void launch_together_64(const AttentionParams& params, const Splits& splits, cudaStream_t stream);
void launch_together_128(const AttentionParams& params, const Splits& splits, cudaStream_t stream);
void launch_together_latent(const AttentionParams& params, const Splits& splits, cudaStream_t stream);

/// For many rows; with latent heads as above.
void launch_apart_64(const AttentionParams& params, cudaStream_t stream);
void launch_apart_128(const AttentionParams& params, cudaStream_t stream);
void launch_many_latent(const AttentionParams& params, const Splits& splits, cudaStream_t stream);

}  // namespace fastmmoe::attention
