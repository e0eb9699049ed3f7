// SPDX-License-Identifier: Apache-2.0
// FmmTokenPrune on CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "token_prune/params.h"

namespace fastmmoe {

/// The kernel keeps a row of routing_probs in the registers of a warp.
constexpr int64_t kTokenPruneMaxExperts = 256;

/// Grids are no wider than this; the blocks of a grid walk over what is left.
constexpr int kTokenPruneMaxBlocks = 1 << 16;

/// Bytes that launch_token_prune uses of its workspace where K < V; where K = V it uses none. It does not
/// depend on K, so the size for the greatest B and V is enough for every request.
size_t token_prune_workspace_bytes(int64_t B, int64_t V, int64_t E);

/// Writes the four outputs by at most three kernels on `stream`, without waiting for them. Results are the
/// same bit for bit for any max_blocks >= 1 and any schedule. All pointers of params are device memory;
/// outputs do not overlap inputs. workspace: device memory aligned to 8 bytes, needs no initialisation.
/// Throws CheckError for sizes it cannot take; a failed launch throws what launch.h says.
/// Source and ties: as token_prune_cpu, which makes the same choices.
void launch_token_prune(const TokenPruneParams& params, void* workspace, cudaStream_t stream,
                        int max_blocks = kTokenPruneMaxBlocks);

}  // namespace fastmmoe
