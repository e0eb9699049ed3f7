// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/launch.cuh"

namespace fastmmoe::attention {
namespace {

template <typename T>
using Tile = TogetherTile<Heads<T, 64, 64>, 1, 4, 1, 64>;

}  // namespace

void launch_together_64(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_together<Tile<__half>>(params, splits, stream);
  } else {
    launch_together<Tile<__nv_bfloat16>>(params, splits, stream);
  }
}

void launch_apart_64(const AttentionParams& params, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_apart<Heads<__half, 64, 64>>(params, stream);
  } else {
    launch_apart<Heads<__nv_bfloat16, 64, 64>>(params, stream);
  }
}

}  // namespace fastmmoe::attention
