// SPDX-License-Identifier: Apache-2.0
// What host code knows of the products with weights of few bits (few_rows.cuh, tile_products.cuh).
#pragma once

#include <cstdint>

namespace fastmmoe {

/// Columns of weights are a multiple of this: the depth of one tensor core operation. With int4 of twice as
/// much, so that rows of weights are whole pieces of 16 bytes.
constexpr int64_t kProductDepth = 16;
constexpr int64_t kInt4ProductDepth = 32;

/// Most tokens of the kernels for few, and the rows of their tiles.
constexpr int kDecodeTokens = 8;

/// Rows of a tile: for few rows of one matrix, for some, and for many with weights of 16 bits. The kernels
/// for few tokens have others.
constexpr int kSmallTileRows = 16, kMediumTileRows = 64, kLargeTileRows = 128;

}  // namespace fastmmoe
