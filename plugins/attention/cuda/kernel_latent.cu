// SPDX-License-Identifier: Apache-2.0
#include "attention/cuda/launch.cuh"

namespace fastmmoe::attention {
namespace {

template <typename T>
using Latent = Heads<T, 576, 512, true>;

template <typename T>
using FewTile = TogetherTile<Latent<T>, 1, 4, 2, 32>;

// More lines read each key less often: as many as there is shared memory for, on sm_86, sm_89 and sm_120 the
// first.
template <typename T>
using MediumTile = TogetherTile<Latent<T>, 2, 2, 2, 16>;
template <typename T>
using LargeTile = TogetherTile<Latent<T>, 4, 2, 1, 32>;

template <typename T>
void launch_many(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  if (TogetherShared<LargeTile<T>>::kBytes <= most_shared_bytes()) {
    launch_together<LargeTile<T>>(params, splits, stream);
  } else {
    launch_together<MediumTile<T>>(params, splits, stream);
  }
}

}  // namespace

void launch_together_latent(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_together<FewTile<__half>>(params, splits, stream);
  } else {
    launch_together<FewTile<__nv_bfloat16>>(params, splits, stream);
  }
}

void launch_many_latent(const AttentionParams& params, const Splits& splits, cudaStream_t stream) {
  if (params.type == FloatType::kFloat16) {
    launch_many<__half>(params, splits, stream);
  } else {
    launch_many<__nv_bfloat16>(params, splits, stream);
  }
}

}  // namespace fastmmoe::attention
