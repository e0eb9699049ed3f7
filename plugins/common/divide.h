// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace fastmmoe {

inline int64_t divide_up(int64_t numerator, int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace fastmmoe
