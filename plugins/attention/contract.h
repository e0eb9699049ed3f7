// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::attention {

/// The greatest legal sizes and numbers.
constexpr int64_t kMostA = 65536, kMostB = 65536, kMostT = 16777216, kMostC = 16777216, kMostN = 1024, kMostK = 1024, kMostD = 1024, kMostW = 1024, kMostWindow = 2147483647, kMostValueWidth = 1024;

}  // namespace fastmmoe::attention
// clang-format on
