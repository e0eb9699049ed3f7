// SPDX-License-Identifier: Apache-2.0
// FmmAttention on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "attention/params.h"

namespace fastmmoe {

/// What the kernels take of D and W: multiples, up to these; with value_width up to the latent ones.
constexpr int64_t kAttentionMultiple = 8;  // rows are whole pieces of 16 bytes
constexpr int64_t kAttentionMostWidth = 128;
constexpr int64_t kAttentionMostLatent = 576;
constexpr int64_t kAttentionMostLatentValues = 512;

/// Throws CheckError for types or sizes that the kernels cannot take, though the contract allows them; no
/// pointer is looked at. They take float16 and bfloat16, the caches in the
/// same type, and for D and W multiples of 8 up to 128, or with value_width up to 576 and 512.
void check_attention(const AttentionParams& params);

/// Bytes that launch_attention uses of its workspace for params.T rows or less; no pointer is looked at. It
/// is never less for greater A, T and C, so the size for the greatest is enough for every request. Throws
/// what check_attention throws.
size_t attention_workspace_bytes(const AttentionParams& params);

/// Writes the outputs on `stream` without waiting for them: a copy of each cache that is not in place, and
/// one kernel; two where rows are few and C is more than 128, with latent heads 64, and where those have up
/// to 512 / N rows and C is more than 1024. Results are the same bit for bit on every run. A row's does not
/// depend on B, on other sequences, or on C up to 8192 (latent heads 4096), as long as the mean number of
/// rows of a sequence is on the same side of 64 K / N, and with latent heads T of 512 / N.
///
/// All pointers are device memory; those of floats but lse are aligned to 16 bytes, as is the workspace,
/// which needs no initialisation. Lengths, ids and offsets are read by the kernels: where they break the
/// contract, outputs hold anything, and nothing is read or written outside of the arrays. Throws what
/// check_attention throws; a failed launch throws what launch.h says.
void launch_attention(const AttentionParams& params, void* workspace, cudaStream_t stream);

}  // namespace fastmmoe
