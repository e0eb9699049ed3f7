// SPDX-License-Identifier: Apache-2.0
// lean_host LEAN_LIBRARY PLUGIN_LIBRARY [OP NAME=VALUE...]...: loads the plugin library by the registry of
// TensorRT's lean runtime and makes a plugin of each OP. VALUE is s and a text, f and a float or i and an
// integer. Prints the version of TensorRT and a line for each OP. For machines without TensorRT's Python
// module.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "lean_host: %s\n", message.c_str());
  std::exit(1);
}

template <typename Function>
Function* symbol(void* library, const char* name) {
  void* const address = dlsym(library, name);
  if (address == nullptr) fail(std::string("no symbol ") + name);
  return reinterpret_cast<Function*>(address);
}

/// Owns what the fields point to.
class Fields {
 public:
  void add(const std::string& name, char kind, const std::string& value) {
    const char* const key = texts_.emplace_back(name).c_str();
    if (kind == 's') {
      const std::string& text = texts_.emplace_back(value);
      fields_.emplace_back(key, text.c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(text.size() + 1));
    } else if (kind == 'i') {
      fields_.emplace_back(key, &integers_.emplace_back(std::stoi(value)), PluginFieldType::kINT32, 1);
    } else {
      fields_.emplace_back(key, &numbers_.emplace_back(std::stof(value)), PluginFieldType::kFLOAT32, 1);
    }
  }
  nvinfer1::PluginFieldCollection collection() const {
    return {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

 private:
  std::deque<std::string> texts_;
  std::deque<int32_t> integers_;
  std::deque<float> numbers_;
  std::vector<PluginField> fields_;
};

void make_plugin(nvinfer1::IPluginRegistry& registry, const std::string& op, const Fields& fields) {
  nvinfer1::IPluginCreatorInterface* const creator = registry.getCreator(op.c_str(), "1", "fastmmoe");
  if (creator == nullptr) fail("no creator " + op);
  const nvinfer1::PluginFieldCollection collection = fields.collection();
  const std::unique_ptr<nvinfer1::IPluginV3> plugin(
      static_cast<nvinfer1::IPluginCreatorV3One*>(creator)->createPlugin("node", &collection,
                                                                         nvinfer1::TensorRTPhase::kBUILD));
  if (plugin == nullptr) {
    std::printf("%s refused\n", op.c_str());
    return;
  }
  const auto* const build = static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
  std::printf("%s %d outputs\n", op.c_str(), build->getNbOutputs());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) fail("usage: lean_host LEAN_LIBRARY PLUGIN_LIBRARY [OP NAME=VALUE...]...");
  void* const lean = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (lean == nullptr) fail(dlerror());
  std::printf("TensorRT %d\n", symbol<int32_t()>(lean, "getInferLibVersion")());
  nvinfer1::IPluginRegistry* const registry =
      symbol<nvinfer1::IPluginRegistry*()>(lean, "getPluginRegistry")();
  if (registry->loadLibrary(argv[2]) == nullptr) fail(std::string("TensorRT does not load ") + argv[2]);
  for (int i = 3; i < argc;) {
    const std::string op = argv[i++];
    Fields fields;
    for (; i < argc && std::strchr(argv[i], '=') != nullptr; ++i) {
      const std::string pair = argv[i];
      const size_t split = pair.find('=');
      fields.add(pair.substr(0, split), pair.at(split + 1), pair.substr(split + 2));
    }
    make_plugin(*registry, op, fields);
  }
  return 0;
}
