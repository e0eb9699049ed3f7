// SPDX-License-Identifier: Apache-2.0
// What operators with stored weights have in common (exporter/ops/tiles.py): the sizes that their attributes
// tell, and which types and sizes go together.
#pragma once

#include "contract/contract.h"
#include "linear/contract.h"

namespace fastmmoe {

/// As the attributes say.
struct StoredWeights {
  bool is_float, is_int4, is_tiled;
  int64_t group_size;
  const char* format;
};

/// p and g of the weights, and n, w and b of tiles.
inline Sizes weight_sizes(const StoredWeights& weights) {
  Sizes known;
  known.set('p', weights.is_int4 ? 2 : 1);
  known.set('g', weights.group_size);
  known.set('n', linear::kPanel);
  known.set('w', weights.is_float ? 2 : weights.is_int4 ? linear::kInt4Columns : 4);
  known.set('b', weights.is_float ? 2 : 4);
  return known;
}

/// Throws CheckError unless weights of this type go with the attributes. columns: the letters of what their
/// rows have.
inline void check_weights(const OpContract& contract, const char* name, const char* columns,
                          ElementType found, const Sizes& sizes, const StoredWeights& weights) {
  CHECK(weights.is_float == (found != ElementType::kInt8), contract.name, ": ", name, " is ", name_of(found),
        ", expected ", weights.is_float ? "float, float16 or bfloat16" : "int8", " with weight_format ",
        weights.format);
  CHECK(!weights.is_tiled || !weights.is_float || found == ElementType::kBfloat16, contract.name, ": ", name,
        " is ", name_of(found), ", expected bfloat16 with weight_layout tiles");
  for (const char* letter = columns; *letter != 0; ++letter) {
    CHECK(!weights.is_int4 || weights.is_tiled || sizes[*letter] % linear::kInt4Columns == 0, contract.name,
          ": ", *letter, " is ", sizes[*letter], ", expected a multiple of ", linear::kInt4Columns,
          " with weight_format int4 and weight_layout logical");
  }
}

}  // namespace fastmmoe
