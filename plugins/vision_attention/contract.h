// SPDX-License-Identifier: Apache-2.0
// Written by scripts/make_contract.py from exporter/ops. Do not edit.
#pragma once

#include <cstdint>

// clang-format off
namespace fastmmoe::vision_attention {

/// The legal values of the attributes.
enum class Compute { kFloat32, kBfloat16 };

/// The greatest legal sizes and numbers.
constexpr int64_t kMostB = 65536, kMostT = 65536, kMostN = 1024, kMostD = 1024;

}  // namespace fastmmoe::vision_attention
// clang-format on
