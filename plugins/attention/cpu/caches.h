// SPDX-License-Identifier: Apache-2.0
// What a call writes to the caches.
#pragma once

#include "attention/cpu/attend.h"
#include "attention/cpu/plan.h"

namespace fastmmoe {

/// Copies each cache whose present_* is not at the address of its past_*.
void copy_caches(const AttentionParams& params, const ParallelFor& parallel_for);

/// Writes the new rows of a sequence among its cache's rows `begin` to `end`, of key head k; with the first
/// head their positions.
void write_rows(const AttentionParams& params, const PlannedSequence& sequence, int64_t begin, int64_t end,
                int64_t k, RoundFunction round);

/// Address of row 0 of the cached keys of key head k, and of its values.
const void* cached_keys(const AttentionParams& params, int64_t cache, int64_t k);
const void* cached_values(const AttentionParams& params, int64_t cache, int64_t k);

}  // namespace fastmmoe
