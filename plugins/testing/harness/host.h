// SPDX-License-Identifier: Apache-2.0
// Stands in for TensorRT: loads a plugin library and calls its plugins in TensorRT's order, on host memory.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "testing/harness/expressions.h"

namespace fastmmoe::harness {

/// A tensor and its optimisation profile; one shape where min = opt = max. Python has the same structure.
struct Tensor {
  int32_t type;  // nvinfer1::DataType
  int32_t rank;
  Range dims[8];
  void* data;  // host memory of shape opt; null in the build phase
};

/// Inputs, then outputs, of a node.
struct Tensors {
  Tensor* first;
  int32_t inputs, outputs;
};

/// Keeps what plugins log, a line each: the severity's number, a space, the message.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  std::string take();

 private:
  std::string lines_;
};

/// The ways in which a plugin may get at the logger.
enum class LoggerAccess : int32_t { kNone, kByFinder, kByGetLogger };

/// A loaded library. It stays loaded: its plugins may outlive this object.
class Library {
 public:
  /// Throws CheckError where it cannot be loaded or does not export what TensorRT looks for.
  explicit Library(const char* path);

  Logger& logger() { return logger_; }
  void set_logger(LoggerAccess access);
  const std::vector<nvinfer1::IPluginCreatorV3One*>& creators() const { return creators_; }
  nvinfer1::IPluginCreatorV3One& creator(const std::string& plugin) const;

 private:
  void* symbol(const char* name) const;

  struct Finder final : nvinfer1::ILoggerFinder {
    nvinfer1::ILogger* logger = nullptr;
    nvinfer1::ILogger* findLogger() override { return logger; }
  };

  void* handle_;
  void (*set_logger_finder_)(nvinfer1::ILoggerFinder*);
  Logger logger_;
  Finder finder_;
  std::vector<nvinfer1::IPluginCreatorV3One*> creators_;
};

/// Types and dimensions of the outputs, from those of the inputs. Throws CheckError where the plugin fails.
void infer_outputs(nvinfer1::IPluginV3& plugin, const Tensors& tensors);

/// Whether the plugin takes the tensor's type and format beside those before it.
bool supports(nvinfer1::IPluginV3& plugin, const Tensors& tensors, int32_t position,
              nvinfer1::TensorFormat format);

/// configurePlugin, then getWorkspaceSize. Throws CheckError where the plugin fails.
size_t configure(nvinfer1::IPluginV3& plugin, const Tensors& tensors);

/// getAliasedInput.
int32_t aliased_input(nvinfer1::IPluginV3& plugin, int32_t output);

/// onShapeChange, then enqueue, on copies of the tensors; outputs that are aliased have the address of their
/// input. Throws CheckError where the plugin fails, writes to another input or outside of an output or the
/// workspace.
void run(nvinfer1::IPluginV3& plugin, const Tensors& tensors, size_t workspace_bytes);

}  // namespace fastmmoe::harness
