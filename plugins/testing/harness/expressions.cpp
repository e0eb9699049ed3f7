// SPDX-License-Identifier: Apache-2.0
#include "testing/harness/expressions.h"

#include <algorithm>

#include "common/check.h"

namespace fastmmoe::harness {
namespace {

using nvinfer1::DimensionOperation;

Range combine(DimensionOperation operation, const Range& a, const Range& b) {
  switch (operation) {
    case DimensionOperation::kSUM:
      return {a.min + b.min, a.opt + b.opt, a.max + b.max};
    case DimensionOperation::kSUB:
      return {a.min - b.max, a.opt - b.opt, a.max - b.min};
    case DimensionOperation::kMIN:
      return {std::min(a.min, b.min), std::min(a.opt, b.opt), std::min(a.max, b.max)};
    case DimensionOperation::kMAX:
      return {std::max(a.min, b.min), std::max(a.opt, b.opt), std::max(a.max, b.max)};
    default:
      throw_check_error("harness: dimension operation ", static_cast<int32_t>(operation),
                        ", expected kSUM, kSUB, kMIN or kMAX");
  }
}

const Range& range_of(const nvinfer1::IDimensionExpr& expression) {
  return static_cast<const Expression&>(expression).range();
}

}  // namespace

Expression::Expression(const Range& range) {
  value_.range = range;
  mImpl = &value_;
}

ExpressionBuilder::ExpressionBuilder() {
  operations_.owner = this;
  mImpl = &operations_;
}

const Expression* ExpressionBuilder::make(const Range& range) {
  return made_.emplace_back(std::make_unique<Expression>(range)).get();
}

const nvinfer1::IDimensionExpr* ExpressionBuilder::Operations::constant(int64_t value) {
  return owner->make({value, value, value});
}

const nvinfer1::IDimensionExpr* ExpressionBuilder::Operations::operation(
    DimensionOperation operation, const nvinfer1::IDimensionExpr& first,
    const nvinfer1::IDimensionExpr& second) {
  return owner->make(combine(operation, range_of(first), range_of(second)));
}

const nvinfer1::IDimensionExpr* ExpressionBuilder::Operations::declareSizeTensor(
    int32_t, const nvinfer1::IDimensionExpr&, const nvinfer1::IDimensionExpr&) {
  throw_check_error("harness: no size tensors");
}

}  // namespace fastmmoe::harness
