// SPDX-License-Identifier: Apache-2.0
// Messages to TensorRT's logger, and the end of every exception: none may pass a method that TensorRT calls.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace fastmmoe {

/// TensorRT gives its finder when it loads the library; null takes it back.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

/// One line to the logger of the TensorRT that called the plugin on this thread, to stderr where it has none.
/// node: the name of the node it is about; null or empty where it has none.
void log(nvinfer1::ILogger::Severity severity, const char* node, const char* message) noexcept;

/// What body returns; where it throws, the message is logged and the result is `failure`.
template <typename Result, typename Body>
Result guarded(const char* node, Result failure, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log(nvinfer1::ILogger::Severity::kERROR, node, error.what());
    return failure;
  }
}

}  // namespace fastmmoe
