// SPDX-License-Identifier: Apache-2.0
// Grids of the kernels.
#pragma once

#include "attention/cuda/apart.cuh"
#include "attention/cuda/attend_together.cuh"
#include "common/cuda/launch.h"

namespace fastmmoe::attention {

template <int kLines>
dim3 grid_of(const AttentionParams& params, int splits) {
  return dim3(static_cast<unsigned>(most_pieces<kLines>(params.A, params.T, params.N / params.K)),
              static_cast<unsigned>(params.K), static_cast<unsigned>(splits));
}

template <typename Heads>
void launch_apart(const AttentionParams& params, cudaStream_t stream) {
  const LaunchConfig config{grid_of<kApartLines>(params, 1), kApartThreads, ApartShared<Heads>::kBytes};
  LAUNCH_KERNEL(attend_apart<Heads>, config, stream, params);
}

template <typename Tile>
void launch_together(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  const LaunchConfig config{grid_of<Tile::kLines>(params, splits.count), Tile::kThreads,
                            TogetherShared<Tile>::kBytes};
  LAUNCH_KERNEL(attend_together<Tile>, config, stream, params, splits);
}

}  // namespace fastmmoe::attention
