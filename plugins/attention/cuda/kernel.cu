// SPDX-License-Identifier: Apache-2.0
// One kernel for many rows, two for few, whose keys are split. The new rows are written by the same kernels,
// which read them from the inputs: no launch before has to end first. Grids follow T, A and C, which the host
// knows; how many rows are in use is read by the blocks.
#include <algorithm>
#include <cstdint>

#include "attention/cuda/combine.cuh"
#include "attention/cuda/heads.h"
#include "attention/cuda/kernel.h"
#include "common/check.h"
#include "common/cuda/launch.h"
#include "common/divide.h"

namespace fastmmoe {
namespace attention {
namespace {

enum class Widths { k64, k128, kLatent };

// Mean number of lines of a sequence and key head up to which keys are split; more are blocks enough.
constexpr int64_t kFewLines = 64;

// Keys of a split; where C takes more splits than there may be, they get longer, by whole tiles of every
// kernel. Latent heads have one key head, so few blocks.
constexpr int64_t kSplitKeys = 128, kLatentSplitKeys = 64, kMostSplits = 64, kSplitUnit = 64;

// Nor do more rows with latent heads have blocks enough, up to so many lines in all. Their splits are longer:
// they take about the workspace of few rows.
constexpr int64_t kMediumLines = 512, kMediumSplitKeys = 1024, kMostMediumSplits = 8;

constexpr int64_t kMostLines = int64_t{1} << 30;  // they are counted in int

// The narrowest that have room.
Widths widths_of(const AttentionParams& params) {
  const int64_t widest = std::max(params.D, params.W);
  const bool is_latent = params.attributes.value_width != 0;
  const bool fits = is_latent && params.D <= kAttentionMostLatent && params.W <= kAttentionMostLatentValues;
  CHECK(params.D % kAttentionMultiple == 0 && params.W % kAttentionMultiple == 0 &&
            (widest <= kAttentionMostWidth || fits),
        "FmmAttention: D is ", params.D, " and W is ", params.W, ", expected multiples of ",
        kAttentionMultiple, " up to ", kAttentionMostWidth, ", or with value_width up to ",
        kAttentionMostLatent, " and ", kAttentionMostLatentValues, ", on CUDA");
  return widest <= 64 ? Widths::k64 : widest <= kAttentionMostWidth ? Widths::k128 : Widths::kLatent;
}

const char* name_of(FloatType type) {
  return type == FloatType::kFloat ? "float" : type == FloatType::kFloat16 ? "float16" : "bfloat16";
}

// The greatest T with few rows, at most params.T.
int64_t few_rows(const AttentionParams& params) {
  return std::min(params.T, kFewLines * params.A / (params.N / params.K));
}

// The same of medium T, which latent heads have.
int64_t medium_rows(const AttentionParams& params) {
  return widths_of(params) == Widths::kLatent ? std::min(params.T, kMediumLines / params.N) : 0;
}

// The workspace for T rows: no gaps, the sums first.
Splits split(const AttentionParams& params, int64_t T, void* workspace) {
  const bool is_latent = widths_of(params) == Widths::kLatent, is_medium = T > few_rows(params);
  const int64_t least = is_medium ? kMediumSplitKeys : is_latent ? kLatentSplitKeys : kSplitKeys;
  const int64_t count = std::min(divide_up(params.C, least), is_medium ? kMostMediumSplits : kMostSplits);
  const int64_t keys = std::max(least, divide_up(divide_up(params.C, count), kSplitUnit) * kSplitUnit);
  Splits splits{static_cast<int>(count), static_cast<int>(keys), nullptr, nullptr};
  if (count == 1) return splits;
  splits.sums = static_cast<float*>(workspace);
  splits.seen = reinterpret_cast<Seen*>(splits.sums + count * T * params.N * params.W);
  return splits;
}

// Copies a cache that is not in place.
void copy_cache(const AttentionParams& params, const void* past, void* present, int64_t row_bytes,
                cudaStream_t stream) {
  if (present == nullptr || present == past) return;
  copy_on_device(present, past, static_cast<size_t>(params.B * params.C * row_bytes), stream);
}

void copy_caches(const AttentionParams& params, cudaStream_t stream) {
  copy_cache(params, params.past_key, params.present_key, params.K * params.D * 2, stream);
  copy_cache(params, params.past_value, params.present_value, params.K * params.W * 2, stream);
  copy_cache(params, params.past_position_ids, params.present_position_ids, sizeof(int32_t), stream);
}

void launch_many(const AttentionParams& params, cudaStream_t stream) {
  switch (widths_of(params)) {
    case Widths::k64:
      return launch_apart_64(params, stream);
    case Widths::k128:
      return launch_apart_128(params, stream);
    case Widths::kLatent:
      return launch_many_latent(params, {1, INT32_MAX / 2, nullptr, nullptr}, stream);
  }
}

template <typename T, int kWidth>
void launch_combine(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  constexpr int kPlaces = kCombineThreads / (kWidth / kCombineColumns);  // of a block
  const auto blocks = static_cast<unsigned>(divide_up(params.T * params.N, kPlaces));
  LAUNCH_KERNEL((combine_splits<T, kWidth>), {blocks, kCombineThreads}, stream, params, splits);
}

template <int kWidth>
void combine(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  if (splits.sums == nullptr) return;
  if (params.type == FloatType::kFloat16) {
    launch_combine<__half, kWidth>(params, splits, stream);
  } else {
    launch_combine<__nv_bfloat16, kWidth>(params, splits, stream);
  }
}

}  // namespace
}  // namespace attention

void check_attention(const AttentionParams& params) {
  using namespace attention;
  CHECK(params.type != FloatType::kFloat,
        "FmmAttention: query is float, expected float16 or bfloat16 on CUDA");
  CHECK(params.cache_type == params.type, "FmmAttention: past_key is ", name_of(params.cache_type),
        ", expected ", name_of(params.type), ", the type of query, on CUDA");
  widths_of(params);
  const int64_t lines = params.T * (params.N / params.K);
  CHECK(lines <= kMostLines, "FmmAttention: T is ", params.T, " with ", params.N / params.K,
        " query heads to a key head, expected at most ", kMostLines / (params.N / params.K),
        " rows on CUDA; split the call");
}

size_t attention_workspace_bytes(const AttentionParams& params) {
  using namespace attention;
  check_attention(params);
  const int64_t bytes = params.W * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(Seen));
  int64_t most = 0;
  for (const int64_t rows : {few_rows(params), medium_rows(params)}) {
    const int64_t splits = split(params, rows, nullptr).count;
    if (splits > 1) most = std::max(most, splits * rows * params.N * bytes);
  }
  return static_cast<size_t>(most);
}

void launch_attention(const AttentionParams& params, void* workspace, cudaStream_t stream) {
  using namespace attention;
  check_attention(params);
  copy_caches(params, stream);
  const bool is_few = few_rows(params) == params.T;
  if (!is_few && medium_rows(params) < params.T) return launch_many(params, stream);
  const Splits splits = split(params, params.T, workspace);
  switch (widths_of(params)) {
    case Widths::k64:
      launch_together_64(params, splits, stream);
      return combine<64>(params, splits, stream);
    case Widths::k128:
      launch_together_128(params, splits, stream);
      return combine<128>(params, splits, stream);
    case Widths::kLatent:
      (is_few ? launch_together_latent : launch_many_latent)(params, splits, stream);
      return combine<512>(params, splits, stream);
  }
}

}  // namespace fastmmoe
