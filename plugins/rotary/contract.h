// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::rotary {

/// The greatest legal sizes and numbers.
constexpr int64_t kMostT = 16777216, kMostN = 1024, kMostP = 512;

}  // namespace fastmmoe::rotary
// clang-format on
