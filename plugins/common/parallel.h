// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace fastmmoe {

/// Calls body(i) for every i in [0, count), in any order and on any threads, and returns when all calls are
/// done. If a body throws, one of the exceptions is thrown again by the caller. Kernels get it as an
/// argument, so that they know no framework; their results do not depend on how many threads it has.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

}  // namespace fastmmoe
