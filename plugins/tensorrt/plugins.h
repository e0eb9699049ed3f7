// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "tensorrt/plugin.h"

namespace fastmmoe {

/// A plugin for a node of the operator. Throws CheckError for attributes that do not go together.
std::unique_ptr<ContractPlugin> make_sparse_moe_plugin(NodeAttributes node, std::string name);
std::unique_ptr<ContractPlugin> make_token_prune_plugin(NodeAttributes node, std::string name);
std::unique_ptr<ContractPlugin> make_attention_plugin(NodeAttributes node, std::string name);
std::unique_ptr<ContractPlugin> make_linear_plugin(NodeAttributes node, std::string name);

}  // namespace fastmmoe
