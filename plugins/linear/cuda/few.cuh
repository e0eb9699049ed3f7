// SPDX-License-Identifier: Apache-2.0
// FmmLinear for few rows (common/cuda/few_rows.cuh).
#pragma once

#include "common/cuda/few_rows.cuh"
#include "linear/cuda/device.cuh"

namespace fastmmoe::linear {

/// y, kDecodeRows columns of all rows for each block. Grid: pieces of kDecodeRows columns. Block:
/// kDecodeWarps warps share the steps along K, which is the only place where a sum is put together from
/// parts.
template <typename Format>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks) linear_few(const LinearKernelParams params) {
  using T = typename Format::Type;
  __shared__ WarpSums shared;
  const int K = static_cast<int>(params.K), N = static_cast<int>(params.N), rows = static_cast<int>(params.T);
  const int first_column = static_cast<int>(blockIdx.x) * kDecodeRows;
  // Beyond N the last weights are read again, for sums that nobody takes.
  const int first = first_column + lane() / 4;
  const int weight_rows[2] = {min(first, N - 1), min(first + 8, N - 1)};
  const T* input = lane() / 4 < rows ? static_cast<const T*>(params.x) + int64_t{lane() / 4} * K : nullptr;
  const Matrix<Format> weights = weights_of<Format>(params);
  float sums[4] = {};
  for_each_step(
      1, steps_of<Format>(K), [&](Place place) { return load_step(weights, weight_rows, input, place.step); },
      [&](Place, const Step<Format>& step) { multiply_step(step, sums); });
  shared.put(sums);
  __syncthreads();

  const int row = thread() / kDecodeRows, column = first_column + thread() % kDecodeRows;
  if (row >= rows || column >= N) return;
  static_cast<T*>(params.y)[int64_t{row} * N + column] =
      from_float<T>(finish<T>(params, row, column, shared.get(thread() % kDecodeRows, row)));
}

}  // namespace fastmmoe::linear
