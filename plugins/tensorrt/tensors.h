// SPDX-License-Identifier: Apache-2.0
// TensorRT's descriptions of tensors in the words of the contract.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "contract/contract.h"

namespace fastmmoe {

/// Throws CheckError for a type that no contract has.
ElementType element_type(nvinfer1::DataType type);
nvinfer1::DataType data_type(ElementType type);

std::vector<int64_t> shape_of(const nvinfer1::Dims& dims);

/// Throws CheckError for another number of inputs than the node's.
void check_input_count(const NodeAttributes& node, int32_t count);

/// Expressions for the dimensions of outputs by those of the inputs.
class Expressions {
 public:
  /// Throws CheckError for inputs of another number or rank than the node's.
  Expressions(const NodeAttributes& node, const nvinfer1::DimsExprs* inputs, int32_t count,
              nvinfer1::IExprBuilder& builder);

  /// A letter that an input has as a dimension. Throws CheckError where none has.
  const nvinfer1::IDimensionExpr& letter(char letter) const;
  const nvinfer1::IDimensionExpr& evaluate(const Dimension& dimension) const;
  const nvinfer1::IDimensionExpr& constant(int64_t value) const { return *builder_.constant(value); }
  const nvinfer1::IDimensionExpr& combine(nvinfer1::DimensionOperation operation,
                                          const nvinfer1::IDimensionExpr& a,
                                          const nvinfer1::IDimensionExpr& b) const {
    return *builder_.operation(operation, a, b);
  }

 private:
  const OpContract& contract_;
  nvinfer1::IExprBuilder& builder_;
  std::array<const nvinfer1::IDimensionExpr*, 128> letters_ = {};
};

}  // namespace fastmmoe
