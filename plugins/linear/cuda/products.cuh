// SPDX-License-Identifier: Apache-2.0
// Starts the kernel of one format of weights.
#pragma once

#include "common/cuda/launch.h"
#include "common/divide.h"
#include "linear/cuda/few.cuh"
#include "linear/cuda/products.h"
#include "linear/cuda/tiles.cuh"

namespace fastmmoe::linear {

template <typename Format, typename Tile>
void launch_tiles(const LinearKernelParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divide_up(params.T, Tile::kRows)),
                  static_cast<unsigned>(divide_up(params.N, kTileWeights)));
  const LaunchConfig config{grid, Tile::kThreads, TileMemory<Format, Tile>::kBytes};
  LAUNCH_KERNEL((linear_tiles<Format, Tile>), config, stream, params);
}

// Medium tiles read weights from the L2 cache and unpack them a quarter as often as small ones, but where
// they are fewer than this, multiprocessors of an Orin, which has 16, would have nothing or little to do.
constexpr int64_t kLeastMediumTiles = 32;

inline bool has_medium_tiles(const LinearKernelParams& params) {
  return params.T > kSmallTileRows &&
         divide_up(params.T, kMediumTileRows) * divide_up(params.N, kTileWeights) >= kLeastMediumTiles;
}

template <typename Format>
void launch_rows(const LinearKernelParams& params, cudaStream_t stream) {
  if (params.T <= kDecodeTokens) {
    const auto blocks = static_cast<unsigned>(divide_up(params.N, kDecodeRows));
    LAUNCH_KERNEL(linear_few<Format>, {{blocks}, kDecodeThreads}, stream, params);
  } else if (has_medium_tiles(params)) {
    launch_tiles<Format, MediumTile>(params, stream);
  } else {
    launch_tiles<Format, SmallTile>(params, stream);
  }
}

template <template <typename> class Weights>
void launch_format(const LinearKernelParams& params, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_rows<Weights<__half>>(params, stream);
  } else {
    launch_rows<Weights<__nv_bfloat16>>(params, stream);
  }
}

}  // namespace fastmmoe::linear
