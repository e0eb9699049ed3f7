// SPDX-License-Identifier: Apache-2.0
// The library's C functions, which TensorRT finds by name when it loads the library.
#include <NvInferRuntime.h>

#include <iterator>

#include "contract/exports.h"
#include "contract/tables.h"
#include "tensorrt/creator.h"
#include "tensorrt/log.h"
#include "tensorrt/plugins.h"

namespace fastmmoe {
namespace {

using Creators = nvinfer1::IPluginCreatorInterface* const*;

struct Registry {
  ContractCreator sparse_moe{sparse_moe::contract(), make_sparse_moe_plugin};
  ContractCreator token_prune{token_prune::contract(), make_token_prune_plugin};
  ContractCreator attention{attention::contract(), make_attention_plugin};
  ContractCreator linear{linear::contract(), make_linear_plugin};
  nvinfer1::IPluginCreatorInterface* all[4] = {&sparse_moe, &token_prune, &attention, &linear};
};

// Read from the file by programs that cannot load the library, which may be for another machine.
__attribute__((used)) const char version_marker[] = "FASTMMOE_TRT_VERSION=" FASTMMOE_VERSION;

}  // namespace
}  // namespace fastmmoe

/// Where plugins find the logger of whoever called them.
FASTMMOE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { fastmmoe::set_logger_finder(finder); }

/// One creator for each operator.
FASTMMOE_EXPORT fastmmoe::Creators getCreators(int32_t& count) {
  count = 0;
  return fastmmoe::guarded<fastmmoe::Creators>(nullptr, nullptr, [&] {
    // Never destroyed: TensorRT's registry may outlive this library's static objects.
    static auto* const registry = new fastmmoe::Registry;
    count = static_cast<int32_t>(std::size(registry->all));
    return registry->all;
  });
}

/// Creators of the interface before IPluginV3, of which there are none: TensorRT looks here in libraries that
/// have no getCreators.
FASTMMOE_EXPORT fastmmoe::Creators getPluginCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const none[] = {nullptr};
  count = 0;
  return none;
}
