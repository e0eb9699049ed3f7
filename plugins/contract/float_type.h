// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/half.h"
#include "contract/contract.h"

namespace fastmmoe {

/// Of a floating-point element type.
inline FloatType float_type(ElementType type) {
  CHECK(type == ElementType::kFloat || type == ElementType::kFloat16 || type == ElementType::kBfloat16,
        "element type is ", name_of(type), ", expected float, float16 or bfloat16");
  return type == ElementType::kFloat     ? FloatType::kFloat
         : type == ElementType::kFloat16 ? FloatType::kFloat16
                                         : FloatType::kBfloat16;
}

}  // namespace fastmmoe
