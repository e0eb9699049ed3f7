// SPDX-License-Identifier: Apache-2.0
// Starts the kernels of one format of weights.
#pragma once

#include "common/check.h"
#include "common/cuda/launch.h"
#include "common/divide.h"
#include "sparse_moe/cuda/decode.cuh"
#include "sparse_moe/cuda/experts.h"
#include "sparse_moe/cuda/gemm.cuh"

namespace fastmmoe::sparse_moe {

template <typename Format>
void launch_few_rows(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>(work.max_tiles);
  const auto gate_up = static_cast<unsigned>(divide_up(2 * params.I, kDecodeRows));
  const auto down = static_cast<unsigned>(divide_up(params.H, kDecodeRows));
  LAUNCH_KERNEL(gate_up_few<Format>, {{tiles, gate_up}, kDecodeThreads}, stream, params, work);
  LAUNCH_KERNEL(down_few<Format>, {{down}, kDecodeThreads}, stream, params, work);
}

template <typename Format, typename Tile>
void launch_tiles(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const auto config = [&](int64_t columns, int64_t tile_columns) {
    const dim3 grid(static_cast<unsigned>(work.max_tiles),
                    static_cast<unsigned>(divide_up(columns, tile_columns)));
    return LaunchConfig{grid, Tile::kThreads, TileMemory<Format, Tile>::kBytes};
  };
  LAUNCH_KERNEL((gate_up_tiles<Format, Tile>), config(params.I, kGateUpColumns), stream, params, work);
  LAUNCH_KERNEL((down_tiles<Format, Tile>), config(params.H, kTileWeights), stream, params, work);
}

template <typename Format>
void launch_rows(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  if (is_few(params)) return launch_few_rows<Format>(params, work, stream);
  switch (work.tile_rows) {
    case kSmallTileRows:
      return launch_tiles<Format, SmallTile>(params, work, stream);
    case kMediumTileRows:
      return launch_tiles<Format, MediumTile>(params, work, stream);
  }
  if constexpr (!kIsPacked<Format>) launch_tiles<Format, LargeTile>(params, work, stream);
}

template <template <typename> class Weights>
void launch_format(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_rows<Weights<__half>>(params, work, stream);
  } else {
    launch_rows<Weights<__nv_bfloat16>>(params, work, stream);
  }
}

}  // namespace fastmmoe::sparse_moe
