// SPDX-License-Identifier: Apache-2.0
// C functions of the harness for Python. Those that give a text return null where they succeeded.
#include "testing/emulator/entry.h"

#include "testing/harness/host.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using fastmmoe::emulator::guarded;
using fastmmoe::harness::Library;
using fastmmoe::harness::Tensors;
using nvinfer1::IPluginV3;

const char* kept(std::string text) {
  static thread_local std::string result;
  result = std::move(text);
  return result.c_str();
}

}  // namespace

EXPORT const char* harness_open(const char* path, Library** library) {
  return guarded([&] { *library = new Library(path); });
}

EXPORT void harness_set_logger(Library* library, int32_t access) {
  library->set_logger(static_cast<fastmmoe::harness::LoggerAccess>(access));
}

/// What was logged since the last call.
EXPORT const char* harness_take_messages(Library* library) { return kept(library->logger().take()); }

/// "namespace name version field:type field:type...", a line for each creator.
EXPORT const char* harness_creators(Library* library) {
  std::string lines;
  for (nvinfer1::IPluginCreatorV3One* const creator : library->creators()) {
    lines += std::string(creator->getPluginNamespace()) + " " + creator->getPluginName() + " " +
             creator->getPluginVersion();
    const nvinfer1::PluginFieldCollection& fields = *creator->getFieldNames();
    for (int32_t i = 0; i < fields.nbFields; ++i) {
      const nvinfer1::PluginField& field = fields.fields[i];
      lines += std::string(" ") + field.name + ":" + std::to_string(static_cast<int32_t>(field.type));
    }
    lines += "\n";
  }
  return kept(std::move(lines));
}

/// *plugin: null where the creator refuses.
EXPORT const char* harness_create(Library* library, const char* plugin_name, const char* node,
                                  const nvinfer1::PluginFieldCollection* fields, int32_t phase,
                                  IPluginV3** plugin) {
  return guarded([&] {
    *plugin =
        library->creator(plugin_name).createPlugin(node, fields, static_cast<nvinfer1::TensorRTPhase>(phase));
  });
}

EXPORT const char* harness_infer_outputs(IPluginV3* plugin, const Tensors* tensors) {
  return guarded([&] { fastmmoe::harness::infer_outputs(*plugin, *tensors); });
}

EXPORT const char* harness_supports(IPluginV3* plugin, const Tensors* tensors, int32_t position,
                                    int32_t format, int32_t* result) {
  return guarded([&] {
    *result =
        fastmmoe::harness::supports(*plugin, *tensors, position, static_cast<nvinfer1::TensorFormat>(format));
  });
}

EXPORT const char* harness_configure(IPluginV3* plugin, const Tensors* tensors, size_t* workspace_bytes) {
  return guarded([&] { *workspace_bytes = fastmmoe::harness::configure(*plugin, *tensors); });
}

EXPORT const char* harness_aliased_input(IPluginV3* plugin, int32_t output, int32_t* result) {
  return guarded([&] { *result = fastmmoe::harness::aliased_input(*plugin, output); });
}

/// Lives as long as the plugin.
EXPORT const nvinfer1::PluginFieldCollection* harness_fields(IPluginV3* plugin) {
  return static_cast<nvinfer1::IPluginV3OneRuntime*>(
             plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME))
      ->getFieldsToSerialize();
}

EXPORT IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }

EXPORT IPluginV3* harness_attach(IPluginV3* plugin) {
  return static_cast<nvinfer1::IPluginV3OneRuntime*>(
             plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME))
      ->attachToContext(nullptr);
}

EXPORT const char* harness_run(IPluginV3* plugin, const Tensors* tensors, size_t workspace_bytes) {
  return guarded([&] { fastmmoe::harness::run(*plugin, *tensors, workspace_bytes); });
}

EXPORT void harness_destroy(IPluginV3* plugin) { delete plugin; }
