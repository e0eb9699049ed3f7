// SPDX-License-Identifier: Apache-2.0
// What an operator takes and gives, and nodes checked against it. The tables (tables.h) are written from the
// Python contracts; every native library reads attributes and inputs through them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/check.h"

namespace fastmmoe {

enum class ElementType { kFloat, kFloat16, kBfloat16, kInt8, kInt32 };
const char* name_of(ElementType type);
int64_t bytes_of(ElementType type);

/// (number + sum of factor * letter) / divisor, rounded up.
struct Dimension {
  struct Term {
    int64_t factor;
    char letter;
  };
  const char* text;  // as the docs write it
  int64_t number;
  std::vector<Term> terms;
  char divisor;  // a letter, or 0
};

constexpr int kAlways = -1;
constexpr int kNoAlias = -1;

struct TensorContract {
  const char* name;
  std::vector<Dimension> shape;
  std::vector<ElementType> types;
  char variable;  // tensors of the same letter have the same type; 0: the type stands alone
  int attribute;  // a node has the tensor if this attribute has one of these values; kAlways
  std::vector<int64_t> values;
  bool is_excluded;              // a node has the tensor if the attribute has none of them
  int alias;                     // of an output: the input whose address it may have; kNoAlias
  std::vector<Dimension> tiled;  // the shape with weight_layout tiles; empty: the same
};

enum class AttributeKind { kInt, kFloat, kString };

struct AttributeContract {
  const char* name;
  AttributeKind kind;
  std::vector<const char*> texts;  // legal values of a string
  std::vector<int64_t> numbers;    // of an int; empty: any within the limits
  bool has_limits;
  int64_t low, high;
};

/// The legal sizes of a dimension letter.
struct SizeContract {
  char letter;
  int64_t least, greatest;
};

struct OpContract {
  const char* name;
  int version;
  std::vector<TensorContract> inputs;   // those that not all nodes have come last
  std::vector<TensorContract> outputs;  // likewise
  std::vector<AttributeContract> attributes;
  std::vector<SizeContract> sizes;  // of every letter that an input can tell
};

std::vector<const OpContract*> all_contracts();

/// {"OpName":{"version":1,"inputs":[...],"outputs":[...],"attributes":[...]}}
std::string contracts_as_json();

/// A node as its framework gives it. Each throws CheckError where the attribute is missing or of another
/// kind.
class AttributeSource {
 public:
  virtual ~AttributeSource() = default;
  virtual int64_t integer(const char* name) const = 0;
  virtual float number(const char* name) const = 0;
  virtual std::string text(const char* name) const = 0;
};

/// The attributes of one node, each with a legal value.
class NodeAttributes {
 public:
  /// Throws CheckError for the first that is missing, of another kind or not legal.
  NodeAttributes(const OpContract& contract, const AttributeSource& source);

  const OpContract& contract() const { return *contract_; }
  /// An int, or the place of a string among its legal values: tables.h has functions that make it an
  /// enumerator.
  int64_t integer(size_t attribute) const { return integers_[attribute]; }
  float number(size_t attribute) const { return numbers_[attribute]; }
  /// A string.
  const char* text(size_t attribute) const {
    return contract_->attributes[attribute].texts[static_cast<size_t>(integers_[attribute])];
  }

  /// The shape that the node asks for.
  const std::vector<Dimension>& shape_of(const TensorContract& tensor) const {
    return is_tiled_ && !tensor.tiled.empty() ? tensor.tiled : tensor.shape;
  }

  /// The inputs of the node in order: their places in the contract.
  const std::vector<size_t>& inputs() const { return inputs_.places; }
  bool has(size_t input) const { return inputs_.positions[input] >= 0; }
  /// Place of an input that the node has among its inputs.
  size_t position(size_t input) const { return static_cast<size_t>(inputs_.positions[input]); }

  /// The same of its outputs.
  const std::vector<size_t>& outputs() const { return outputs_.places; }
  bool has_output(size_t output) const { return outputs_.positions[output] >= 0; }
  size_t output_position(size_t output) const { return static_cast<size_t>(outputs_.positions[output]); }

  /// Place among the node's inputs of one that has the type of this output; -1 where its type stands alone.
  int type_source(const TensorContract& output) const;

 private:
  struct Tensors {
    std::vector<size_t> places;
    std::vector<int> positions;  // -1: the node does not have it
  };

  void read(size_t attribute, const AttributeSource& source);
  Tensors choose(const std::vector<TensorContract>& tensors) const;

  const OpContract* contract_;
  std::vector<int64_t> integers_;
  std::vector<float> numbers_;
  bool is_tiled_ = false;
  Tensors inputs_, outputs_;
};

struct TensorInfo {
  ElementType type;
  std::vector<int64_t> shape;
};

/// Sizes by dimension letter.
class Sizes {
 public:
  bool has(char letter) const { return values_[index(letter)] >= 0; }
  int64_t operator[](char letter) const { return values_[index(letter)]; }
  void set(char letter, int64_t value) { values_[index(letter)] = value; }
  /// The dimension, all letters of which are known.
  int64_t evaluate(const Dimension& dimension) const;

 private:
  static size_t index(char letter) { return static_cast<size_t>(letter); }
  static constexpr std::array<int64_t, 128> unknown() {
    std::array<int64_t, 128> values{};
    for (int64_t& value : values) value = -1;
    return values;
  }
  std::array<int64_t, 128> values_ = unknown();
};

/// Checks one input's type and rank; `variables` holds the types of the letters seen so far.
class TypeChecker {
 public:
  explicit TypeChecker(const OpContract& contract) : contract_(contract) {}
  /// Throws CheckError unless the contract allows the type beside those checked before.
  void check(const TensorContract& tensor, ElementType type);

 private:
  const OpContract& contract_;
  std::array<int, 128> bound_ = {};  // type + 1; 0: none yet
};

/// Throws CheckError unless the letter may have this size, which an input of this shape gives it.
void check_size(const OpContract& contract, char letter, int64_t size, const TensorContract& tensor,
                const std::vector<int64_t>& shape);

/// Checks the inputs of a node, in its order, and gives the sizes. `known` holds letters that only attributes
/// give. Throws CheckError for a wrong number of inputs, type, rank or size. Whoever computes with the sizes
/// relies on their limits: a product of any of them that a kernel forms fits into 64 bits (static_assert
/// there).
Sizes bind_inputs(const NodeAttributes& attributes, const std::vector<TensorInfo>& inputs,
                  const Sizes& known = {});

/// Shape of an output; all its letters are known after bind_inputs.
std::vector<int64_t> output_shape(const TensorContract& output, const Sizes& sizes);

/// "[2, 3]"
std::string as_text(const std::vector<int64_t>& shape);

/// "[T, H]"
std::string as_text(const std::vector<Dimension>& shape);

/// Throws CheckError unless the V values of an index into T rows ascend and are rows.
void check_rows(const OpContract& contract, const TensorContract& tensor, const int32_t* rows, int64_t V,
                int64_t T);

}  // namespace fastmmoe
