// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/tensors.h"

#include <array>
#include <cstdlib>

namespace fastmmoe {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::IDimensionExpr;

struct TypePair {
  ElementType element;
  DataType data;
};
constexpr std::array<TypePair, 5> kTypes = {{{ElementType::kFloat, DataType::kFLOAT},
                                             {ElementType::kFloat16, DataType::kHALF},
                                             {ElementType::kBfloat16, DataType::kBF16},
                                             {ElementType::kInt8, DataType::kINT8},
                                             {ElementType::kInt32, DataType::kINT32}}};

bool is_letter(const Dimension& dimension) {
  return dimension.number == 0 && dimension.terms.size() == 1 && dimension.terms[0].factor == 1 &&
         dimension.divisor == 0;
}

}  // namespace

ElementType element_type(DataType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.data == type) return pair.element;
  }
  throw_check_error("TensorRT data type ", static_cast<int32_t>(type),
                    ", expected float, half, bfloat16, int8 or int32");
}

DataType data_type(ElementType type) {
  for (const TypePair& pair : kTypes) {
    if (pair.element == type) return pair.data;
  }
  throw_check_error("no TensorRT data type for the element type ", name_of(type));
}

std::vector<int64_t> shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

void check_input_count(const NodeAttributes& node, int32_t count) {
  CHECK(static_cast<size_t>(count) == node.inputs().size(), node.contract().name, ": ", count,
        " inputs, expected with these attributes are ", node.inputs().size());
}

Expressions::Expressions(const NodeAttributes& node, const nvinfer1::DimsExprs* inputs, int32_t count,
                         nvinfer1::IExprBuilder& builder)
    : contract_(node.contract()), builder_(builder) {
  check_input_count(node, count);
  for (size_t i = 0; i < node.inputs().size(); ++i) {
    const TensorContract& tensor = contract_.inputs[node.inputs()[i]];
    CHECK(static_cast<size_t>(inputs[i].nbDims) == tensor.shape.size(), contract_.name, ": ", tensor.name,
          " has rank ", inputs[i].nbDims, ", expected rank ", tensor.shape.size(), ": ",
          as_text(tensor.shape));
    for (size_t d = 0; d < tensor.shape.size(); ++d) {
      const Dimension& dimension = tensor.shape[d];
      if (!is_letter(dimension)) continue;
      auto& known = letters_[static_cast<size_t>(dimension.terms[0].letter)];
      if (known == nullptr) known = inputs[i].d[d];
    }
  }
}

const IDimensionExpr& Expressions::letter(char letter) const {
  const IDimensionExpr* const expression = letters_[static_cast<size_t>(letter)];
  CHECK(expression != nullptr, contract_.name, ": no input has the dimension ", letter);
  return *expression;
}

const IDimensionExpr& Expressions::evaluate(const Dimension& dimension) const {
  CHECK(dimension.divisor == 0, contract_.name, ": no output has a divided dimension");
  const IDimensionExpr* value = nullptr;
  if (dimension.number != 0 || dimension.terms.empty() || dimension.terms[0].factor < 0) {
    value = builder_.constant(dimension.number);
  }
  for (const Dimension::Term& term : dimension.terms) {
    const IDimensionExpr* product = &letter(term.letter);
    const int64_t factor = std::abs(term.factor);
    if (factor != 1) product = &combine(DimensionOperation::kPROD, *builder_.constant(factor), *product);
    const DimensionOperation sign = term.factor > 0 ? DimensionOperation::kSUM : DimensionOperation::kSUB;
    value = value == nullptr ? product : &combine(sign, *value, *product);
  }
  return *value;
}

}  // namespace fastmmoe
