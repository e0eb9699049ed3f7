// SPDX-License-Identifier: Apache-2.0
// TensorRT's builder of dimension expressions, on ranges of numbers.
#pragma once

#include <NvInferImpl.h>
#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace fastmmoe::harness {

/// What an optimisation profile says of a dimension.
struct Range {
  int64_t min, opt, max;
};

/// A dimension as a plugin sees it in getOutputShapes.
class Expression final : public nvinfer1::IDimensionExpr {
 public:
  explicit Expression(const Range& range);
  const Range& range() const { return value_.range; }

 private:
  struct Value final : nvinfer1::apiv::VDimensionExpr {
    Range range;
    bool isConstant() const override { return range.min == range.max; }
    int64_t getConstantValue() const override { return range.min; }
    bool isSizeTensor() const override { return false; }
  };
  Value value_;
};

/// Derives the range of an expression from the ranges of its two operands alone, as TensorRT does.
class ExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ExpressionBuilder();
  const Expression* make(const Range& range);

 private:
  struct Operations final : nvinfer1::apiv::VExprBuilder {
    ExpressionBuilder* owner;
    const nvinfer1::IDimensionExpr* constant(int64_t value) override;
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override;
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t output, const nvinfer1::IDimensionExpr& opt,
                                                      const nvinfer1::IDimensionExpr& upper) override;
  };
  Operations operations_;
  std::vector<std::unique_ptr<Expression>> made_;
};

}  // namespace fastmmoe::harness
