// SPDX-License-Identifier: Apache-2.0
// What the operators take and give, as this library reads it: the kernels read inputs and attributes through
// these tables, and FmmContract() prints them, so that a test can compare them with the Python contract.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <string>
#include <vector>

namespace fastmmoe {

struct InputContract {
  const char* name;
  const char* shape;  // dimension letters, for messages
  size_t rank;
  ONNXTensorElementDataType type;  // UNDEFINED: any; the kernel checks it
  bool is_optional = false;
};

struct OutputContract {
  const char* name;
  ONNXTensorElementDataType type;
};

struct OpContract {
  const char* name;
  int version;
  std::vector<InputContract> inputs;
  std::vector<OutputContract> outputs;
  std::vector<const char*> attributes;
};

namespace sparse_moe {
enum Input : size_t {
  kHiddenStates,
  kRouterLogits,
  kVisualIndex,
  kVisualTopK,
  kCorrectionBias,
  kGateUp,
  kDown,
  kGateUpBias,
  kDownBias
};
enum Attribute : size_t {
  kTopK,
  kScoringFunc,
  kTopkMethod,
  kNGroup,
  kTopkGroup,
  kNormTopkProb,
  kRoutedScalingFactor,
  kReductionWeights,
  kActivation,
  kSwigluLimit,
  kExpertBias
};
const OpContract& contract();
}  // namespace sparse_moe

namespace token_prune {
enum Input : size_t {
  kHiddenStates,
  kResidual,
  kRoutingProbs,
  kAttention,
  kVisualIndex,
  kKeepSlots,
  kMergeSlots,
  kAlpha
};
enum Output : size_t { kHiddenStatesOut, kResidualOut, kKeptIndex, kVisualIndexOut };
enum Attribute : size_t { kWindow, kMerge };
const OpContract& contract();
}  // namespace token_prune

/// All contracts as JSON: {"OpName":{"version":1,"inputs":[...],"outputs":[...],"attributes":[...]}}.
std::string contracts_as_json();

}  // namespace fastmmoe
