// SPDX-License-Identifier: Apache-2.0
#include "contract/contract.h"

#include <algorithm>

namespace fastmmoe {
namespace {

template <typename Items, typename ToText>
std::string joined(const Items& items, const char* separator, const ToText& to_text) {
  std::string text;
  for (const auto& item : items) {
    if (&item != &items.front()) text += separator;
    text += to_text(item);
  }
  return text;
}

template <typename Items>
std::string names_as_json(const Items& items) {
  return "[" + joined(items, ",", [](const auto& item) { return "\"" + std::string(item.name) + "\""; }) +
         "]";
}

int64_t choice_of(const OpContract& contract, const AttributeContract& attribute, const std::string& value) {
  const auto& texts = attribute.texts;
  const auto found = std::find(texts.begin(), texts.end(), value);
  CHECK(found != texts.end(), contract.name, ": attribute ", attribute.name, " is '", value,
        "', supported are ", joined(texts, ", ", [](const char* text) { return std::string(text); }));
  return found - texts.begin();
}

void check_integer(const OpContract& contract, const AttributeContract& attribute, int64_t value) {
  const auto& numbers = attribute.numbers;
  CHECK(numbers.empty() || std::count(numbers.begin(), numbers.end(), value) > 0, contract.name,
        ": attribute ", attribute.name, " is ", value, ", supported are ",
        joined(numbers, ", ", [](int64_t number) { return std::to_string(number); }));
  CHECK(!attribute.has_limits || (attribute.low <= value && value <= attribute.high), contract.name,
        ": attribute ", attribute.name, " is ", value, ", expected ", attribute.low, " to ", attribute.high);
}

// Gives a letter its size where the dimension has one letter not known yet; false where it does not fit.
bool bind(const OpContract& contract, const TensorContract& tensor, const Dimension& dimension,
          const std::vector<int64_t>& shape, size_t d, Sizes& sizes) {
  if (dimension.divisor != 0 || dimension.terms.size() != 1 || sizes.has(dimension.terms[0].letter)) {
    return sizes.evaluate(dimension) == shape[d];
  }
  const auto [factor, letter] = dimension.terms[0];
  const int64_t rest = shape[d] - dimension.number;
  if (rest % factor != 0) return false;
  check_size(contract, letter, rest / factor, tensor, shape);
  sizes.set(letter, rest / factor);
  return true;
}

// "[E, 2I, H] = [16, 2I, 24]" where I is not known yet.
std::string expected_shape(const std::vector<Dimension>& shape, const Sizes& sizes) {
  const auto known = [&](const Dimension& dimension) {
    const auto& terms = dimension.terms;
    const auto has = [&](const Dimension::Term& term) { return sizes.has(term.letter); };
    return std::all_of(terms.begin(), terms.end(), has) ? std::to_string(sizes.evaluate(dimension))
                                                        : std::string(dimension.text);
  };
  return as_text(shape) + " = [" + joined(shape, ", ", known) + "]";
}

}  // namespace

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return "float";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kBfloat16:
      return "bfloat16";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kInt32:
      return "int32";
  }
  return "of an unknown type";
}

int64_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return 2;
    case ElementType::kInt8:
      return 1;
    default:
      return 4;
  }
}

std::string contracts_as_json() {
  const auto contracts = all_contracts();
  return "{" +
         joined(contracts, ",",
                [](const OpContract* op) {
                  return "\"" + std::string(op->name) + "\":{\"version\":" + std::to_string(op->version) +
                         ",\"inputs\":" + names_as_json(op->inputs) +
                         ",\"outputs\":" + names_as_json(op->outputs) +
                         ",\"attributes\":" + names_as_json(op->attributes) + "}";
                }) +
         "}";
}

NodeAttributes::NodeAttributes(const OpContract& contract, const AttributeSource& source)
    : contract_(&contract), integers_(contract.attributes.size()), numbers_(contract.attributes.size()) {
  for (size_t i = 0; i < contract.attributes.size(); ++i) {
    read(i, source);
    const AttributeContract& attribute = contract.attributes[i];
    is_tiled_ |= attribute.name == std::string("weight_layout") && text(i) == std::string("tiles");
  }
  inputs_ = choose(contract.inputs);
  outputs_ = choose(contract.outputs);
}

NodeAttributes::Tensors NodeAttributes::choose(const std::vector<TensorContract>& tensors) const {
  Tensors chosen;
  chosen.positions.assign(tensors.size(), -1);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorContract& tensor = tensors[i];
    if (tensor.attribute != kAlways) {
      const int64_t value = integers_[static_cast<size_t>(tensor.attribute)];
      const bool is_named = std::count(tensor.values.begin(), tensor.values.end(), value) > 0;
      if (is_named == tensor.is_excluded) continue;
    }
    chosen.positions[i] = static_cast<int>(chosen.places.size());
    chosen.places.push_back(i);
  }
  return chosen;
}

int NodeAttributes::type_source(const TensorContract& output) const {
  const auto has_type = [&](size_t input) { return contract_->inputs[input].variable == output.variable; };
  const auto& places = inputs_.places;
  const auto found = std::find_if(places.begin(), places.end(), has_type);
  return output.variable == 0 || found == places.end() ? -1 : static_cast<int>(found - places.begin());
}

void NodeAttributes::read(size_t i, const AttributeSource& source) {
  const AttributeContract& attribute = contract_->attributes[i];
  switch (attribute.kind) {
    case AttributeKind::kInt:
      integers_[i] = source.integer(attribute.name);
      check_integer(*contract_, attribute, integers_[i]);
      return;
    case AttributeKind::kFloat:
      numbers_[i] = source.number(attribute.name);
      return;
    case AttributeKind::kString:
      integers_[i] = choice_of(*contract_, attribute, source.text(attribute.name));
      return;
  }
}

int64_t Sizes::evaluate(const Dimension& dimension) const {
  int64_t value = dimension.number;
  for (const auto& term : dimension.terms) value += term.factor * (*this)[term.letter];
  if (dimension.divisor == 0) return value;
  const int64_t divisor = (*this)[dimension.divisor];
  return (value + divisor - 1) / divisor;
}

void TypeChecker::check(const TensorContract& tensor, ElementType type) {
  const auto& types = tensor.types;
  CHECK(std::count(types.begin(), types.end(), type) > 0, contract_.name, ": ", tensor.name, " is ",
        name_of(type), ", expected ", joined(types, " or ", [](ElementType t) { return name_of(t); }));
  if (tensor.variable == 0) return;
  int& bound = bound_[static_cast<size_t>(tensor.variable)];
  if (bound == 0) bound = static_cast<int>(type) + 1;
  CHECK(bound == static_cast<int>(type) + 1, contract_.name, ": ", tensor.name, " is ", name_of(type),
        ", expected ", name_of(static_cast<ElementType>(bound - 1)), " as the other tensors of type ",
        tensor.variable);
}

void check_size(const OpContract& contract, char letter, int64_t size, const TensorContract& tensor,
                const std::vector<int64_t>& shape) {
  const auto limits = std::find_if(contract.sizes.begin(), contract.sizes.end(),
                                   [letter](const SizeContract& entry) { return entry.letter == letter; });
  CHECK(limits != contract.sizes.end(), contract.name, ": no limits of ", letter);
  CHECK(limits->least <= size && size <= limits->greatest, contract.name, ": ", letter, " is ", size,
        ", expected ", limits->least, " to ", limits->greatest, " (", tensor.name, " is ", as_text(shape),
        ")");
}

Sizes bind_inputs(const NodeAttributes& attributes, const std::vector<TensorInfo>& inputs,
                  const Sizes& known) {
  const OpContract& contract = attributes.contract();
  const auto name = [&](size_t input) { return std::string(contract.inputs[input].name); };
  CHECK(inputs.size() == attributes.inputs().size(), contract.name, ": ", inputs.size(),
        " inputs, expected with these attributes are ", attributes.inputs().size(), ": ",
        joined(attributes.inputs(), ", ", name));
  Sizes sizes = known;
  TypeChecker types(contract);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorContract& tensor = contract.inputs[attributes.inputs()[i]];
    const std::vector<int64_t>& shape = inputs[i].shape;
    const std::vector<Dimension>& expected = attributes.shape_of(tensor);
    types.check(tensor, inputs[i].type);
    CHECK(shape.size() == expected.size(), contract.name, ": ", tensor.name, " is ", as_text(shape),
          ", expected rank ", expected.size(), ": ", as_text(expected));
    for (size_t d = 0; d < shape.size(); ++d) {
      CHECK(shape[d] >= 0 && bind(contract, tensor, expected[d], shape, d, sizes), contract.name, ": ",
            tensor.name, " is ", as_text(shape), ", expected ", expected_shape(expected, sizes));
    }
  }
  return sizes;
}

std::vector<int64_t> output_shape(const TensorContract& output, const Sizes& sizes) {
  std::vector<int64_t> shape;
  for (const Dimension& dimension : output.shape) shape.push_back(sizes.evaluate(dimension));
  return shape;
}

std::string as_text(const std::vector<int64_t>& shape) {
  return "[" + joined(shape, ", ", [](int64_t value) { return std::to_string(value); }) + "]";
}

std::string as_text(const std::vector<Dimension>& shape) {
  return "[" + joined(shape, ", ", [](const Dimension& dimension) { return std::string(dimension.text); }) +
         "]";
}

void check_rows(const OpContract& contract, const TensorContract& tensor, const int32_t* rows, int64_t V,
                int64_t T) {
  for (int64_t i = 0; i < V; ++i) {
    CHECK(0 <= rows[i] && rows[i] < T, contract.name, ": ", tensor.name, "[", i, "] is ", rows[i],
          ", expected 0 to ", T - 1);
    CHECK(i == 0 || rows[i - 1] < rows[i], contract.name, ": ", tensor.name, "[", i, "] is ", rows[i],
          " after ", rows[i - 1], ", expected ascending rows");
  }
}

}  // namespace fastmmoe
