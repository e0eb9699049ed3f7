// SPDX-License-Identifier: Apache-2.0
#include "testing/harness/host.h"

#include <dlfcn.h>

#include <cstring>
#include <utility>

#include "common/check.h"
#include "testing/harness/memory.h"

namespace fastmmoe::harness {
namespace {

using nvinfer1::DataType;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;

// In outputs and the workspace; NaN in inputs, so that what is read beyond them shows.
constexpr uint8_t kPoison = 0x7f;
constexpr uint8_t kInputGuard = 0xff;

template <typename Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type) {
  nvinfer1::IPluginCapability* const found = plugin.getCapabilityInterface(type);
  CHECK(found != nullptr, "harness: no capability ", static_cast<int32_t>(type));
  return *static_cast<Capability*>(found);
}

nvinfer1::IPluginV3OneBuild& build(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

nvinfer1::IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

void expect_success(const char* method, int32_t status) {
  CHECK(status == 0, "harness: ", method, " returned ", status);
}

size_t bytes_of(const Tensor& tensor) {
  size_t bytes = 0;
  switch (static_cast<DataType>(tensor.type)) {
    case DataType::kFLOAT:
    case DataType::kINT32:
      bytes = 4;
      break;
    case DataType::kHALF:
    case DataType::kBF16:
      bytes = 2;
      break;
    default:
      bytes = 1;
  }
  for (int32_t d = 0; d < tensor.rank; ++d) bytes *= static_cast<size_t>(tensor.dims[d].opt);
  return bytes;
}

nvinfer1::Dims dims_of(const Tensor& tensor, int64_t Range::* which) {
  nvinfer1::Dims dims{};
  dims.nbDims = tensor.rank;
  for (int32_t d = 0; d < tensor.rank; ++d) dims.d[d] = tensor.dims[d].*which;
  return dims;
}

nvinfer1::PluginTensorDesc description(const Tensor& tensor) {
  nvinfer1::PluginTensorDesc result{};
  result.dims = dims_of(tensor, &Range::opt);
  result.type = static_cast<DataType>(tensor.type);
  result.format = nvinfer1::TensorFormat::kLINEAR;
  result.scale = 1;
  return result;
}

std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic_descriptions(const Tensors& tensors) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> result;
  for (int32_t i = 0; i < tensors.inputs + tensors.outputs; ++i) {
    const Tensor& tensor = tensors.first[i];
    nvinfer1::DynamicPluginTensorDesc& entry = result.emplace_back();
    entry.desc = description(tensor);
    for (int32_t d = 0; d < tensor.rank; ++d) {
      if (tensor.dims[d].min != tensor.dims[d].max) entry.desc.dims.d[d] = -1;
    }
    entry.min = dims_of(tensor, &Range::min);
    entry.opt = dims_of(tensor, &Range::opt);
    entry.max = dims_of(tensor, &Range::max);
  }
  return result;
}

// What getLogger returns.
nvinfer1::ILogger* global_logger = nullptr;

}  // namespace

void Logger::log(Severity severity, const char* message) noexcept {
  lines_ += std::to_string(static_cast<int32_t>(severity)) + " " + message + "\n";
}

std::string Logger::take() { return std::exchange(lines_, {}); }

Library::Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
  CHECK(handle_ != nullptr, "harness: ", dlerror());
  set_logger_finder_ = reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(symbol("setLoggerFinder"));
  set_logger(LoggerAccess::kByFinder);
  using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
  int32_t count = 0;
  const auto* all = reinterpret_cast<GetCreators>(symbol("getCreators"))(count);
  for (int32_t i = 0; i < count; ++i) {
    const char* const kind = all[i]->getInterfaceInfo().kind;
    CHECK(std::strcmp(kind, "PLUGIN CREATOR_V3ONE") == 0, "harness: a creator of kind ", kind);
    creators_.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(all[i]));
  }
}

void Library::set_logger(LoggerAccess access) {
  finder_.logger = access == LoggerAccess::kByFinder ? &logger_ : nullptr;
  global_logger = access == LoggerAccess::kByGetLogger ? &logger_ : nullptr;
  set_logger_finder_(access == LoggerAccess::kNone ? nullptr : &finder_);
}

void* Library::symbol(const char* name) const {
  void* const address = dlsym(handle_, name);
  CHECK(address != nullptr, "harness: the library does not export ", name);
  return address;
}

nvinfer1::IPluginCreatorV3One& Library::creator(const std::string& plugin) const {
  for (nvinfer1::IPluginCreatorV3One* const creator : creators_) {
    if (plugin == creator->getPluginName()) return *creator;
  }
  throw_check_error("harness: no creator ", plugin);
}

void infer_outputs(IPluginV3& plugin, const Tensors& tensors) {
  nvinfer1::IPluginV3OneBuild& builder = build(plugin);
  CHECK(builder.getNbOutputs() == tensors.outputs, "harness: ", builder.getNbOutputs(), " outputs, expected ",
        tensors.outputs);
  ExpressionBuilder expressions;
  const auto inputs = static_cast<size_t>(tensors.inputs), outputs = static_cast<size_t>(tensors.outputs);
  std::vector<DataType> input_types(inputs), output_types(outputs);
  std::vector<nvinfer1::DimsExprs> input_dims(inputs), output_dims(outputs);
  for (size_t i = 0; i < inputs; ++i) {
    input_types[i] = static_cast<DataType>(tensors.first[i].type);
    input_dims[i].nbDims = tensors.first[i].rank;
    for (int32_t d = 0; d < tensors.first[i].rank; ++d) {
      input_dims[i].d[d] = expressions.make(tensors.first[i].dims[d]);
    }
  }
  expect_success("getOutputDataTypes", builder.getOutputDataTypes(output_types.data(), tensors.outputs,
                                                                  input_types.data(), tensors.inputs));
  expect_success("getOutputShapes",
                 builder.getOutputShapes(input_dims.data(), tensors.inputs, nullptr, 0, output_dims.data(),
                                         tensors.outputs, expressions));
  for (size_t i = 0; i < outputs; ++i) {
    Tensor& output = tensors.first[inputs + i];
    output.type = static_cast<int32_t>(output_types[i]);
    output.rank = output_dims[i].nbDims;
    for (int32_t d = 0; d < output.rank; ++d) {
      output.dims[d] = static_cast<const Expression*>(output_dims[i].d[d])->range();
    }
  }
}

bool supports(IPluginV3& plugin, const Tensors& tensors, int32_t position, nvinfer1::TensorFormat format) {
  auto descriptions = dynamic_descriptions(tensors);
  descriptions[static_cast<size_t>(position)].desc.format = format;
  // A plugin must not look at what comes after.
  for (size_t i = static_cast<size_t>(position) + 1; i < descriptions.size(); ++i) {
    descriptions[i].desc.type = static_cast<DataType>(-1);
  }
  return build(plugin).supportsFormatCombination(position, descriptions.data(), tensors.inputs,
                                                 tensors.outputs);
}

size_t configure(IPluginV3& plugin, const Tensors& tensors) {
  const auto descriptions = dynamic_descriptions(tensors);
  const auto* const outputs = descriptions.data() + tensors.inputs;
  expect_success("configurePlugin", build(plugin).configurePlugin(descriptions.data(), tensors.inputs,
                                                                  outputs, tensors.outputs));
  return build(plugin).getWorkspaceSize(descriptions.data(), tensors.inputs, outputs, tensors.outputs);
}

int32_t aliased_input(IPluginV3& plugin, int32_t output) {
  nvinfer1::IPluginV3OneBuild& builder = build(plugin);
  CHECK(builder.getInterfaceInfo().major == 2, "harness: build interface ", builder.getInterfaceInfo().major,
        ", expected 2");
  return static_cast<nvinfer1::IPluginV3OneBuildV2&>(builder).getAliasedInput(output);
}

void run(IPluginV3& plugin, const Tensors& tensors, size_t workspace_bytes) {
  std::vector<nvinfer1::PluginTensorDesc> descriptions;
  std::vector<GuardedMemory> memory;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  const auto name = [&](int32_t i) {
    return i < tensors.inputs ? "input " + std::to_string(i) : "output " + std::to_string(i - tensors.inputs);
  };
  const int32_t count = tensors.inputs + tensors.outputs;
  for (int32_t i = 0; i < count; ++i) {
    const Tensor& tensor = tensors.first[i];
    descriptions.push_back(description(tensor));
    const bool is_input = i < tensors.inputs;
    memory.emplace_back(bytes_of(tensor), is_input ? kInputGuard : kPoison);
    if (is_input) std::memcpy(memory.back().data(), tensor.data, bytes_of(tensor));
  }
  for (int32_t i = 0; i < tensors.inputs; ++i) inputs.push_back(memory[static_cast<size_t>(i)].data());
  // Where each output is: an input's memory, which is then not to stay as it was.
  std::vector<int32_t> places;
  std::vector<bool> is_written(static_cast<size_t>(count));
  for (int32_t i = tensors.inputs; i < count; ++i) {
    const int32_t alias = aliased_input(plugin, i - tensors.inputs);
    const auto place = static_cast<size_t>(places.emplace_back(alias < 0 ? i : alias));
    CHECK(!is_written[place], "harness: two outputs are ", name(places.back()));
    is_written[place] = true;
    outputs.push_back(memory[place].data());
  }
  GuardedMemory workspace(workspace_bytes, kPoison);
  const auto* const output_descriptions = descriptions.data() + tensors.inputs;
  expect_success("onShapeChange", runtime(plugin).onShapeChange(descriptions.data(), tensors.inputs,
                                                                output_descriptions, tensors.outputs));
  expect_success("enqueue", runtime(plugin).enqueue(descriptions.data(), output_descriptions, inputs.data(),
                                                    outputs.data(), workspace.data(), nullptr));
  workspace.check_guards("the workspace");
  for (int32_t i = 0; i < count; ++i) {
    GuardedMemory& tensor = memory[static_cast<size_t>(i)];
    tensor.check_guards(name(i));
    if (i >= tensors.inputs) {
      std::memcpy(tensors.first[i].data, outputs[static_cast<size_t>(i - tensors.inputs)],
                  bytes_of(tensors.first[i]));
    } else if (!is_written[static_cast<size_t>(i)]) {
      tensor.check_equals(tensors.first[i].data, name(i));
    }
  }
}

}  // namespace fastmmoe::harness

// TensorRT's own functions that a plugin looks for.

extern "C" __attribute__((visibility("default"))) nvinfer1::ILogger* getLogger() noexcept {
  return fastmmoe::harness::global_logger;
}

extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept {
  return NV_TENSORRT_VERSION;
}
