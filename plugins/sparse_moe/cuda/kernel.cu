// SPDX-License-Identifier: Apache-2.0
// Five kernels: choose experts, sort by expert, two grouped matrix products, add up. For few tokens three:
// choosing and sorting fit in one block, and the second product adds up as well. The host knows only how many
// row tiles there can be; blocks beyond those there are end at once.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/cuda/launch.h"
#include "common/divide.h"
#include "sparse_moe/cuda/combine.cuh"
#include "sparse_moe/cuda/experts.h"
#include "sparse_moe/cuda/kernel.h"
#include "sparse_moe/cuda/route.cuh"
#include "sparse_moe/cuda/sort.cuh"

namespace fastmmoe {
namespace sparse_moe {
namespace {

// Mean rows of an expert from which a tile is worth the rows that only fill it up. While they are few,
// reading weights takes longer than multiplying, so the bounds need not be exact. Large tiles save reading
// weights from the L2 cache; integers are half as many bytes or less, and unpacking them takes registers.
constexpr int64_t kRowsForMediumTiles = 12;
constexpr int64_t kRowsForLargeTiles = 256;

constexpr int64_t kMaxRows = int64_t{1} << 30;  // rows and slots are counted in int32_t

int64_t tile_rows_for(const SparseMoeKernelParams& params) {
  if (is_few(params)) return kDecodeTokens;
  const int64_t mean = params.T * params.attributes.top_k / params.E;
  if (mean < kRowsForMediumTiles) return kSmallTileRows;
  const bool is_float = params.attributes.weight_format == WeightFormat::kFloat;
  return is_float && mean >= kRowsForLargeTiles ? kLargeTileRows : kMediumTileRows;
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
  if (!is_few(params)) work.weighted = carver.take<uint16_t>(rows * params.H);
  return work;
}

dim3 grid(int64_t x, int64_t y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

void launch_experts(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  switch (params.attributes.weight_format) {
    case WeightFormat::kFloat:
      return launch_float_experts(params, work, stream);
    case WeightFormat::kInt8:
      return launch_int8_experts(params, work, stream);
    case WeightFormat::kInt4:
      return launch_int4_experts(params, work, stream);
    case WeightFormat::kFp8:
      return launch_fp8_experts(params, work, stream);
  }
}

void launch_few(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  LAUNCH_KERNEL(route_and_sort, {1, kRouteAndSortThreads}, stream, params, work);
  launch_experts(params, work, stream);
}

void launch_many(const SparseMoeKernelParams& params, const Workspace& work, cudaStream_t stream) {
  const int64_t tokens_per_block = kRouteThreads / kWarp;
  LAUNCH_KERNEL(route_tokens, {grid(divide_up(params.T, tokens_per_block)), kRouteThreads}, stream, params,
                work);
  LAUNCH_KERNEL(sort_all_slots, {1, kSortThreads}, stream, work, static_cast<int>(params.E));
  launch_experts(params, work, stream);
  const LaunchConfig sums{grid(params.T, divide_up(params.H, kCombineThreads * kVector)), kCombineThreads};
  if (params.type == FloatType::kFloat16) {
    LAUNCH_KERNEL(combine_slots<__half>, sums, stream, params, work);
  } else {
    LAUNCH_KERNEL(combine_slots<__nv_bfloat16>, sums, stream, params, work);
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
  const bool is_int4 = attributes.weight_format == WeightFormat::kInt4;
  const int64_t depth = is_int4 ? kInt4ProductDepth : kProductDepth;
  for (const auto& [name, size] : {std::pair{"H", params.H}, std::pair{"I", params.I}}) {
    CHECK(size > 0 && size % depth == 0, "FmmSparseMoE: ", name, " is ", size, ", expected a multiple of ",
          depth, is_int4 ? " with int4 weights" : "", " on CUDA");
  }
  const int64_t rows = max_tiles_for(params, tile_rows_for(params)) * tile_rows_for(params);
  CHECK(rows <= kMaxRows, "FmmSparseMoE: ", params.T, " tokens with top_k ", attributes.top_k, " take ", rows,
        " rows, expected at most ", kMaxRows, "; split the sequence");
}

}  // namespace
}  // namespace sparse_moe

size_t sparse_moe_workspace_bytes(const SparseMoeKernelParams& params) {
  sparse_moe::check_sizes(params);
  sparse_moe::Carver carver(nullptr);
  sparse_moe::carve(params, carver);
  return static_cast<size_t>(carver.used());
}

void launch_sparse_moe(const SparseMoeKernelParams& params, void* workspace, cudaStream_t stream) {
  sparse_moe::check_sizes(params);
  if (params.T == 0) return;
  sparse_moe::Carver carver(workspace);
  const sparse_moe::Workspace work = sparse_moe::carve(params, carver);
  if (sparse_moe::is_few(params)) {
    sparse_moe::launch_few(params, work, stream);
  } else {
    sparse_moe::launch_many(params, work, stream);
  }
}

}  // namespace fastmmoe
