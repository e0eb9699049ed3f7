// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of all operators for the cases on standard input, one a line:
//   moe TYPE FORMAT GROUP_SIZE ZERO_POINTS T H I E TOP_K
//   linear TYPE FORMAT GROUP_SIZE ZERO_POINTS T K N
//   prune TYPE T V K M H E
//   attention ARCH TYPE T PAST C N K D VALUE_WIDTH WINDOW
//   widths NUMBER...
// TYPE and FORMAT are the values of FloatType and the operator's WeightFormat. What a case prints begins with
// the line "case".
#include "launches.h"

#include <cstdint>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>

#include "attention/cuda/kernel.h"
#include "linear/cuda/kernel.h"
#include "sparse_moe/cuda/kernel.h"
#include "token_prune/cuda/kernel.h"

namespace {

using namespace fastmmoe;

constexpr int64_t kWindow = 4;

/// float [count], far from each other in no order.
const float* scattered(int64_t count) {
  auto* values = static_cast<float*>(device_memory(static_cast<size_t>(count) * sizeof(float)));
  uint32_t state = 1;
  for (int64_t i = 0; kRunsKernels && i < count; ++i) {
    state = state * 1664525u + 1013904223u;  // Numerical Recipes
    values[i] = static_cast<float>(state >> 8) / (1 << 24);
  }
  return values;
}

/// int32 [count] from 0 on.
const int32_t* ascending(int64_t count) {
  auto* values = static_cast<int32_t*>(device_memory(static_cast<size_t>(count) * sizeof(int32_t)));
  for (int64_t i = 0; kRunsKernels && i < count; ++i) values[i] = static_cast<int32_t>(i);
  return values;
}

/// int32 [1].
const int32_t* one(int64_t number) {
  auto* values = static_cast<int32_t*>(device_memory(sizeof(int32_t)));
  if (kRunsKernels) *values = static_cast<int32_t>(number);
  return values;
}

/// int32 [2], the offsets of one sequence.
const int32_t* offsets_to(int64_t end) {
  auto* values = static_cast<int32_t*>(device_memory(2 * sizeof(int32_t)));
  if (kRunsKernels) values[1] = static_cast<int32_t>(end);
  return values;
}

void* zeros(int64_t bytes) { return device_memory(static_cast<size_t>(bytes)); }

int64_t size_of(FloatType type) { return type == FloatType::kFloat ? 4 : 2; }

void launch_moe(std::istream& line) {
  SparseMoeKernelParams params{};
  SparseMoeAttributes& attributes = params.attributes;
  int type, format;
  line >> type >> format >> attributes.group_size >> attributes.zero_points >> params.T >> params.H >>
      params.I >> params.E >> attributes.top_k;
  params.type = static_cast<FloatType>(type);
  attributes.weight_format = static_cast<sparse_moe::WeightFormat>(format);
  attributes.n_group = attributes.topk_group = 1;
  attributes.routed_scaling_factor = 1.0f;
  const int64_t T = params.T, H = params.H, I = params.I, E = params.E, size = size_of(params.type);
  params.hidden_states = zeros(T * H * size);
  params.router_logits = scattered(T * E);
  params.visual_index = ascending(0);
  params.visual_top_k = ascending(1);
  params.correction_bias = scattered(E);
  params.gate_up = zeros(E * 2 * I * H * size);  // integers take less
  params.down = zeros(E * H * I * size);
  if (attributes.weight_format != sparse_moe::WeightFormat::kFloat) {
    const int64_t group_size = attributes.group_size;
    const int64_t gate_up_groups = E * 2 * I * ((H + group_size - 1) / group_size);
    const int64_t down_groups = E * H * ((I + group_size - 1) / group_size);
    params.gate_up_scale = zeros(gate_up_groups * 2);
    params.down_scale = zeros(down_groups * 2);
    if (attributes.zero_points) {
      params.gate_up_zero = static_cast<const int8_t*>(zeros(gate_up_groups));
      params.down_zero = static_cast<const int8_t*>(zeros(down_groups));
    }
  }
  params.output = zeros(T * H * size);
  launch_sparse_moe(params, zeros(static_cast<int64_t>(sparse_moe_workspace_bytes(params))), nullptr);
}

void launch_linear_case(std::istream& line) {
  LinearKernelParams params{};
  LinearAttributes& attributes = params.attributes;
  int type, format;
  line >> type >> format >> attributes.group_size >> attributes.zero_points >> params.T >> params.K >>
      params.N;
  params.type = static_cast<FloatType>(type);
  attributes.weight_format = static_cast<linear::WeightFormat>(format);
  const int64_t T = params.T, K = params.K, N = params.N, size = size_of(params.type);
  const int64_t groups = N * ((K + attributes.group_size - 1) / attributes.group_size);
  params.x = zeros(T * K * size);
  params.weight = zeros(N * K);  // int4 takes less
  params.scale = zeros(groups * 2);
  if (attributes.zero_points) params.zero = static_cast<const int8_t*>(zeros(groups));
  params.y = zeros(T * N * size);
  launch_linear(params, nullptr);
}

void launch_prune(std::istream& line) {
  TokenPruneParams params{};
  int type;
  line >> type >> params.T >> params.V >> params.K >> params.M >> params.H >> params.E;
  params.attributes = {kWindow, token_prune::Merge::kMlerp};
  params.B = 1;
  params.type = static_cast<FloatType>(type);
  const int64_t row = params.H * size_of(params.type), rows = params.T - params.V + params.K;
  params.hidden_states = zeros(params.T * row);
  params.residual = zeros(params.T * row);
  params.routing_probs = scattered(params.V * params.E);
  params.attention = scattered(params.V);
  params.visual_index = ascending(params.V);
  params.visual_offsets = offsets_to(params.V);
  params.keep_offsets = offsets_to(params.K);
  params.merge_offsets = offsets_to(params.M);
  params.alpha = scattered(1);
  params.hidden_states_out = zeros(rows * row);
  params.residual_out = zeros(rows * row);
  params.kept_index = static_cast<int32_t*>(zeros(rows * 4));
  params.visual_index_out = static_cast<int32_t*>(zeros(params.K * 4));
  const size_t workspace = token_prune_workspace_bytes(params.B, params.V, params.E);
  launch_token_prune(params, device_memory(workspace), nullptr);
}

/// One sequence of T rows after `past` in a cache that is in place.
void launch_attention_case(std::istream& line) {
  AttentionParams params{};
  AttentionAttributes& attributes = params.attributes;
  int architecture, type;
  int64_t past;
  line >> architecture >> type >> params.T >> past >> params.C >> params.N >> params.K >> params.D >>
      attributes.value_width >> attributes.window;
  set_architecture(architecture);
  params.type = params.cache_type = static_cast<FloatType>(type);
  attributes.scale = 1.0f;
  params.A = params.B = 1;
  params.W = attributes.value_width > 0 ? attributes.value_width : params.D;
  const int64_t size = size_of(params.type), T = params.T, cached = params.K * params.C * size;
  params.query = zeros(T * params.N * params.D * size);
  params.key = zeros(T * params.K * params.D * size);
  params.past_key = params.present_key = zeros(cached * params.D);
  if (attributes.value_width == 0) {
    params.value = zeros(T * params.K * params.W * size);
    params.past_value = params.present_value = zeros(cached * params.W);
  }
  params.past_lengths = one(past);
  params.sequence_ids = static_cast<const int32_t*>(zeros(T * 4));
  params.sequence_offsets = offsets_to(T);
  if (attributes.window > 0) {
    params.position_ids = ascending(T);
    params.past_position_ids = ascending(params.C);
  }
  params.output = zeros(T * params.N * params.W * size);
  launch_attention(params, device_memory(attention_workspace_bytes(params)), nullptr);
}

void launch_case(const std::string& text) {
  std::istringstream line(text);
  line.exceptions(std::ios::failbit);
  std::string op;
  line >> op;
  if (op == "widths") return read_widths(line);
  std::cout << "case" << std::endl;  // record.cpp and trace.cpp print with stdio
  if (op == "attention") return launch_attention_case(line);
  if (op == "linear") return launch_linear_case(line);
  op == "moe" ? launch_moe(line) : launch_prune(line);
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      launch_case(line);
    } catch (const std::exception& error) {
      std::cerr << "case '" << line << "': " << error.what() << '\n';
      return 1;
    }
  }
  return 0;
}
