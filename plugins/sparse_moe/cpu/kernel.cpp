// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/kernel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/divide.h"
#include "sparse_moe/cpu/gemm.h"
#include "sparse_moe/cpu/route.h"

namespace fastmmoe {
namespace {

using namespace sparse_moe;

constexpr int64_t kTokensPerItem = 32;
constexpr int64_t kRowsPerBlock = 128;   // rows that share one pass over an expert's weights
constexpr int64_t kOutputsPerItem = 32;  // columns of one work item
constexpr int64_t kBlockSize = kRowsPerBlock * kOutputsPerItem;

// Sizes within the contract's limits make no offset, in bytes, that wraps; where they did, this would not
// compile.
constexpr int64_t kMostFloats = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(float));
static_assert(kMostE * 2 * kMostI * kMostH <= kMostFloats, "gate_up and down");
static_assert(kMostT * kMostH <= kMostFloats && kMostT * kMostE <= kMostFloats, "rows of tokens");
static_assert(kMostT * kMostTopK * (kMostI + kOutputsPerItem) <= kMostFloats, "activated, work items");
static_assert(kMostT <= std::numeric_limits<int32_t>::max(), "tokens of pairs");

struct Routing {
  std::vector<int32_t> selected;  // [T, k]
  std::vector<float> weights;     // [T, k]
};

// A token and one of its experts; pairs are sorted by expert, then token.
struct Pair {
  int32_t token;
  float weight;
};

// Pairs begin to end of one expert.
struct RowBlock {
  int64_t expert, begin, end;
};

struct Plan {
  std::vector<Pair> pairs;
  std::vector<RowBlock> blocks;  // ascending by expert
};

Routing route_tokens(const SparseMoeParams& params, const ParallelFor& parallel_for) {
  const int64_t k = params.attributes.top_k;
  Routing routing{std::vector<int32_t>(params.T * k), std::vector<float>(params.T * k)};
  std::vector<uint8_t> is_visual(params.T, 0);
  for (int64_t i = 0; i < params.V; ++i) is_visual[params.visual_index[i]] = 1;
  parallel_for(divide_up(params.T, kTokensPerItem), [&](int64_t item) {
    RouteScratch scratch;
    const int64_t end = std::min(params.T, (item + 1) * kTokensPerItem);
    for (int64_t t = item * kTokensPerItem; t < end; ++t) {
      route_token(params, t, is_visual[t] ? params.visual_top_k : k, scratch, &routing.selected[t * k],
                  &routing.weights[t * k]);
    }
  });
  return routing;
}

// Counting sort of the (token, expert) pairs; a pair of weight 0 is not computed.
Plan group_by_expert(const SparseMoeParams& params, const Routing& routing) {
  const int64_t k = params.attributes.top_k, slots = params.T * k;
  std::vector<int64_t> next(params.E + 1, 0);
  for (int64_t s = 0; s < slots; ++s) next[routing.selected[s] + 1] += routing.weights[s] != 0.0f;
  Plan plan;
  for (int64_t e = 0; e < params.E; ++e) {
    next[e + 1] += next[e];
    for (int64_t begin = next[e]; begin < next[e + 1]; begin += kRowsPerBlock) {
      plan.blocks.push_back({e, begin, std::min(begin + kRowsPerBlock, next[e + 1])});
    }
  }
  plan.pairs.resize(next[params.E]);
  for (int64_t s = 0; s < slots; ++s) {
    if (routing.weights[s] == 0.0f) continue;
    plan.pairs[next[routing.selected[s]]++] = {static_cast<int32_t>(s / k), routing.weights[s]};
  }
  return plan;
}

int64_t weight_size(FloatType type) { return type == FloatType::kFloat ? 4 : 2; }

// Computes one block of products; x, w and y as in GemmBlock.
class BlockProduct {
 public:
  BlockProduct(FloatType type, int64_t depth)
      : function_(gemm_block_for_this_cpu()),
        type_(type),
        depth_(depth),
        scratch_(type == FloatType::kFloat ? 0 : kGemmScratchRows * depth) {}

  // Uses `outputs` rows of the matrix `w` from row `first` on.
  void compute(const float* const* x, int64_t rows, const void* w, int64_t first, int64_t outputs, float* y) {
    const char* from = static_cast<const char*>(w) + first * depth_ * weight_size(type_);
    function_({rows, outputs, depth_, x, from, type_, scratch_.data(), y});
  }

 private:
  GemmBlockFunction function_;
  FloatType type_;
  int64_t depth_;
  std::vector<float> scratch_;
};

float activate(const SparseMoeAttributes& attributes, float gate, float up) {
  if (attributes.activation == Activation::kSwiglu) return gate / (1.0f + std::exp(-gate)) * up;
  const float limit = attributes.swiglu_limit;
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up < -limit ? -limit : up;
  return (up + 1.0f) * gate / (1.0f + std::exp(-kSwigluOaiAlpha * gate));
}

// activated [pairs, I], columns first to first + count of the rows of a block.
void gate_up_columns(const SparseMoeParams& params, const Plan& plan, const RowBlock& block, int64_t first,
                     float* activated) {
  const int64_t I = params.I, rows = block.end - block.begin;
  const int64_t count = std::min(kOutputsPerItem, I - first);
  std::array<const float*, kRowsPerBlock> x;
  for (int64_t r = 0; r < rows; ++r) {
    x[r] = params.hidden_states + plan.pairs[block.begin + r].token * params.H;
  }
  std::array<float, kBlockSize> gate, up;
  BlockProduct product(params.weight_type, params.H);
  const int64_t gate_row = block.expert * 2 * I + first;
  product.compute(x.data(), rows, params.gate_up, gate_row, count, gate.data());
  product.compute(x.data(), rows, params.gate_up, gate_row + I, count, up.data());
  const float* bias = params.gate_up_bias == nullptr ? nullptr : params.gate_up_bias + gate_row;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = activated + (block.begin + r) * I + first;
    for (int64_t c = 0; c < count; ++c) {
      const float gate_bias = bias == nullptr ? 0.0f : bias[c],
                  up_bias = bias == nullptr ? 0.0f : bias[I + c];
      to[c] = activate(params.attributes, gate[r * count + c] + gate_bias, up[r * count + c] + up_bias);
    }
  }
}

// Columns first to first + count of output, of all tokens. One work item owns its columns and adds experts in
// ascending order, so the sums do not depend on threads and need no buffer for each (token, expert).
void down_columns(const SparseMoeParams& params, const Plan& plan, const float* activated, int64_t first) {
  const int64_t H = params.H, I = params.I, count = std::min(kOutputsPerItem, H - first);
  for (int64_t t = 0; t < params.T; ++t) std::fill_n(params.output + t * H + first, count, 0.0f);
  BlockProduct product(params.weight_type, I);
  std::array<const float*, kRowsPerBlock> x;
  std::array<float, kBlockSize> y;
  for (const RowBlock& block : plan.blocks) {
    const int64_t rows = block.end - block.begin, row = block.expert * H + first;
    for (int64_t r = 0; r < rows; ++r) x[r] = activated + (block.begin + r) * I;
    product.compute(x.data(), rows, params.down, row, count, y.data());
    for (int64_t r = 0; r < rows; ++r) {
      const Pair& pair = plan.pairs[block.begin + r];
      float* to = params.output + pair.token * H + first;
      for (int64_t c = 0; c < count; ++c) {
        const float bias = params.down_bias == nullptr ? 0.0f : params.down_bias[row + c];
        to[c] += pair.weight * (y[r * count + c] + bias);
      }
    }
  }
}

// [pairs, I], left without values: each is written before it is read.
std::unique_ptr<float[]> make_activated(int64_t pairs, int64_t I) {
  std::unique_ptr<float[]> activated(new (std::nothrow) float[static_cast<size_t>(pairs * I)]);
  if (activated != nullptr) return activated;
  throw std::runtime_error("FmmSparseMoE: no " + std::to_string(pairs * I * int64_t{sizeof(float)}) +
                           " bytes of memory for " + std::to_string(pairs) +
                           " pairs of a token and an expert with I = " + std::to_string(I));
}

}  // namespace

void sparse_moe_cpu(const SparseMoeParams& params, const ParallelFor& parallel_for) {
  const Plan plan = group_by_expert(params, route_tokens(params, parallel_for));
  const auto activated = make_activated(static_cast<int64_t>(plan.pairs.size()), params.I);
  const int64_t blocks = static_cast<int64_t>(plan.blocks.size());
  const int64_t columns = divide_up(params.I, kOutputsPerItem);
  parallel_for(blocks * columns, [&](int64_t item) {
    gate_up_columns(params, plan, plan.blocks[item / columns], item % columns * kOutputsPerItem,
                    activated.get());
  });
  parallel_for(divide_up(params.H, kOutputsPerItem),
               [&](int64_t item) { down_columns(params, plan, activated.get(), item * kOutputsPerItem); });
}

}  // namespace fastmmoe
