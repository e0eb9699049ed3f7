// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/glue.h"

#include <cstring>
#include <exception>
#include <mutex>

namespace fastmmoe {

std::string as_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

template <typename Value>
Value Attributes::read(size_t index, const char* type) const {
  const char* name = contract_.attributes[index];
  try {
    return info_.GetAttribute<Value>(name);
  } catch (const Ort::Exception&) {
    throw_check_error(contract_.name, ": attribute ", name, " is missing or no ", type,
                      "; every attribute must be given");
  }
}

int64_t Attributes::integer(size_t index, int64_t low, int64_t high) const {
  const int64_t value = read<int64_t>(index, "int");
  CHECK(low <= value && value <= high, contract_.name, ": attribute ", contract_.attributes[index], " is ",
        value, ", expected ", low, " to ", high);
  return value;
}

float Attributes::number(size_t index) const { return read<float>(index, "float"); }

size_t Attributes::choice(size_t index, const std::vector<const char*>& choices) const {
  const std::string value = read<std::string>(index, "string");
  std::string supported;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (value == choices[i]) return i;
    supported += (i > 0 ? ", " : "") + std::string(choices[i]);
  }
  throw_check_error(contract_.name, ": attribute ", contract_.attributes[index], " is '", value,
                    "', supported are ", supported);
}

ONNXTensorElementDataType Inputs::type(size_t index) const {
  return context_.GetInput(index).GetTensorTypeAndShapeInfo().GetElementType();
}

std::vector<int64_t> Inputs::shape(size_t index) const {
  const InputContract& input = contract_.inputs[index];
  CHECK(has(index), contract_.name, ": input ", input.name, " is missing");
  std::vector<int64_t> shape = context_.GetInput(index).GetTensorTypeAndShapeInfo().GetShape();
  CHECK(shape.size() == input.rank, contract_.name, ": ", input.name, " is ", as_text(shape),
        ", expected rank ", input.rank, ": [", input.shape, "]");
  return shape;
}

void Inputs::expect_shape(size_t index, const std::vector<int64_t>& expected) const {
  const std::vector<int64_t> found = shape(index);
  const InputContract& input = contract_.inputs[index];
  CHECK(found == expected, contract_.name, ": ", input.name, " is ", as_text(found), ", expected [",
        input.shape, "] = ", as_text(expected));
}

void Inputs::expect_rows(size_t index, int64_t T) const {
  const int64_t V = shape(index)[0];
  const int32_t* rows = data<int32_t>(index);
  const char* name = contract_.inputs[index].name;
  for (int64_t i = 0; i < V; ++i) {
    CHECK(0 <= rows[i] && rows[i] < T, contract_.name, ": ", name, "[", i, "] is ", rows[i],
          ", expected 0 to ", T - 1);
    CHECK(i == 0 || rows[i - 1] < rows[i], contract_.name, ": ", name, "[", i, "] is ", rows[i], " after ",
          rows[i - 1], ", expected ascending rows");
  }
}

namespace {

struct Loop {
  const std::function<void(int64_t)>* body;
  std::mutex mutex;
  std::exception_ptr error;
};

// Called by ONNX Runtime's threads, which an exception would end.
void run_item(void* data, size_t item) {
  Loop& loop = *static_cast<Loop*>(data);
  try {
    (*loop.body)(static_cast<int64_t>(item));
  } catch (const std::exception&) {
    const std::lock_guard<std::mutex> lock(loop.mutex);
    loop.error = std::current_exception();
  }
}

}  // namespace

ParallelFor parallel_for_of(OrtKernelContext* context) {
  return [context](int64_t count, const std::function<void(int64_t)>& body) {
    if (count == 0) return;
    Loop loop{&body, {}, nullptr};
    Ort::KernelContext(context).ParallelFor(run_item, static_cast<size_t>(count), 0, &loop);
    if (loop.error) std::rethrow_exception(loop.error);
  };
}

}  // namespace fastmmoe
