// SPDX-License-Identifier: Apache-2.0
// Five kernels: choose experts, sort by expert, two grouped matrix products, add up. For few tokens three:
// choosing and sorting fit in one block, and the second product adds up as well. The host knows only how many
// row tiles there can be; blocks beyond those there are end at once.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/cuda/launch.h"
#include "sparse_moe/combine.cuh"
#include "sparse_moe/decode.cuh"
#include "sparse_moe/gemm.cuh"
#include "sparse_moe/kernel.h"
#include "sparse_moe/route.cuh"
#include "sparse_moe/sort.cuh"

namespace fastmmoe {
namespace sparse_moe {
namespace {

// Mean rows of an expert from which a tile is worth the rows that only fill it up. While they are few,
// reading weights takes longer than multiplying, so the bounds need not be exact.
constexpr int64_t kMediumTileRows = 12;
constexpr int64_t kLargeTileRows = 256;

constexpr int64_t kMaxRows = int64_t{1} << 30;  // rows and slots are counted in int32_t

int64_t tile_rows_for(const SparseMoeKernelParams& params) {
  if (params.T <= kDecodeTokens) return kDecodeTokens;
  const int64_t mean = params.T * params.attributes.top_k / params.E;
  return mean < kMediumTileRows  ? SmallTile::kRows
         : mean < kLargeTileRows ? MediumTile::kRows
                                 : LargeTile::kRows;
}

// Every used expert can have one tile that is full but for one row.
int64_t max_tiles_for(const SparseMoeKernelParams& params, int64_t tile_rows) {
  const int64_t slots = params.T * params.attributes.top_k;
  return (slots + std::min(params.E, slots) * (tile_rows - 1)) / tile_rows;
}

// Hands out parts of the workspace, each aligned to 16 bytes. From null it only counts.
class Carver {
 public:
  explicit Carver(void* workspace) : workspace_(static_cast<char*>(workspace)) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = workspace_ == nullptr ? nullptr : reinterpret_cast<T*>(workspace_ + used_);
    used_ += divide_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 16;
  char* workspace_;
  int64_t used_ = 0;
};

Workspace carve(const SparseMoeKernelParams& params, Carver& carver) {
  const int64_t slots = params.T * params.attributes.top_k, tile_rows = tile_rows_for(params);
  const int64_t tiles = max_tiles_for(params, tile_rows), rows = tiles * tile_rows;
  Workspace work{};
  work.slots = static_cast<int32_t>(slots);
  work.tile_rows = static_cast<int32_t>(tile_rows);
  work.max_tiles = static_cast<int32_t>(tiles);
  work.experts = carver.take<int32_t>(slots);
  work.weights = carver.take<float>(slots);
  work.slot_row = carver.take<int32_t>(slots);
  work.row_slot = carver.take<int32_t>(rows);
  work.tile_expert = carver.take<int32_t>(tiles);
  work.activated = carver.take<uint16_t>(rows * params.I);
  if (params.T > kDecodeTokens) work.weighted = carver.take<uint16_t>(rows * params.H);
  return work;
}

dim3 grid(int64_t x, int64_t y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

template <typename T>
void launch_few(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const int64_t columns = divide_up(params.I, kDecodeWarps), pairs = divide_up(params.H, 2 * kDecodeWarps);
  LAUNCH_KERNEL(route_and_sort, {1, kDecodeThreads}, stream, params, work);
  LAUNCH_KERNEL(gate_up_few<T>, {grid(work.max_tiles, columns), kDecodeThreads}, stream, params, work);
  LAUNCH_KERNEL(down_few<T>, {grid(pairs), kDecodeThreads}, stream, params, work);
}

template <typename T, typename Tile>
void launch_tiles(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const auto config = [&](int64_t columns, int64_t tile_columns) {
    return LaunchConfig{grid(work.max_tiles, divide_up(columns, tile_columns)), Tile::kThreads,
                        Tile::kSharedBytes};
  };
  LAUNCH_KERNEL((gate_up_tiles<T, Tile>), config(params.I, kGateUpColumns), stream, params, work);
  LAUNCH_KERNEL((down_tiles<T, Tile>), config(params.H, kTileColumns), stream, params, work);
}

template <typename T>
void launch_many(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const int64_t tokens_per_block = kRouteThreads / kWarp;
  LAUNCH_KERNEL(route_tokens, {grid(divide_up(params.T, tokens_per_block)), kRouteThreads}, stream, params,
                work);
  LAUNCH_KERNEL(sort_all_slots, {1, kSortThreads}, stream, work, static_cast<int>(params.E));
  if (work.tile_rows == SmallTile::kRows) {
    launch_tiles<T, SmallTile>(params, work, stream);
  } else if (work.tile_rows == MediumTile::kRows) {
    launch_tiles<T, MediumTile>(params, work, stream);
  } else {
    launch_tiles<T, LargeTile>(params, work, stream);
  }
  const int64_t columns = divide_up(params.H, kCombineThreads * kVector);
  LAUNCH_KERNEL(combine_slots<T>, {grid(params.T, columns), kCombineThreads}, stream, params, work);
}

template <typename T>
void launch(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  if (params.T <= kDecodeTokens) {
    launch_few<T>(params, work, stream);
  } else {
    launch_many<T>(params, work, stream);
  }
}

void check_sizes(const SparseMoeKernelParams& params) {
  const SparseMoeAttributes& attributes = params.attributes;
  const int64_t most_experts = std::min(params.E, kSparseMoeMaxTopK);
  CHECK(params.type != FloatType::kFloat,
        "FmmSparseMoE: hidden_states is float, expected float16 or bfloat16 on CUDA");
  CHECK(1 <= params.E && params.E <= kSparseMoeMaxExperts, "FmmSparseMoE: E is ", params.E,
        ", expected 1 to ", kSparseMoeMaxExperts, " experts on CUDA");
  CHECK(1 <= attributes.top_k && attributes.top_k <= most_experts, "FmmSparseMoE: top_k is ",
        attributes.top_k, ", expected 1 to ", most_experts);
  CHECK(attributes.n_group >= 1 && attributes.n_group <= kMaxGroups && params.E % attributes.n_group == 0,
        "FmmSparseMoE: n_group is ", attributes.n_group, ", expected 1 to ", kMaxGroups, ", a divisor of ",
        params.E);
  for (const auto& [name, size] : {std::pair{"H", params.H}, std::pair{"I", params.I}}) {
    CHECK(size > 0 && size % kSparseMoeDepth == 0, "FmmSparseMoE: ", name, " is ", size,
          ", expected a multiple of ", kSparseMoeDepth, " on CUDA");
  }
  const int64_t rows = max_tiles_for(params, tile_rows_for(params)) * tile_rows_for(params);
  CHECK(rows <= kMaxRows, "FmmSparseMoE: ", params.T, " tokens with top_k ", attributes.top_k, " take ", rows,
        " rows, expected at most ", kMaxRows, "; split the sequence");
}

}  // namespace
}  // namespace sparse_moe

size_t sparse_moe_workspace_bytes(const SparseMoeKernelParams& params) {
  sparse_moe::Carver carver(nullptr);
  sparse_moe::carve(params, carver);
  return static_cast<size_t>(carver.used());
}

void launch_sparse_moe(const SparseMoeKernelParams& params, void* workspace, cudaStream_t stream) {
  sparse_moe::check_sizes(params);
  if (params.T == 0) return;
  sparse_moe::Carver carver(workspace);
  const sparse_moe::Workspace work = sparse_moe::carve(params, carver);
  if (params.type == FloatType::kFloat16) {
    sparse_moe::launch<__half>(params, work, stream);
  } else {
    sparse_moe::launch<__nv_bfloat16>(params, work, stream);
  }
}

}  // namespace fastmmoe
