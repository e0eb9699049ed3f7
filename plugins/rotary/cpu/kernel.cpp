// SPDX-License-Identifier: Apache-2.0
#include "rotary/cpu/kernel.h"

#include <algorithm>
#include <cstdint>

#include "common/divide.h"
#include "common/variants.h"
#include "rotary/contract.h"
#include "rotary/cpu/turn.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(TurnFunction, turn_function)

namespace {

static_assert(rotary::kMostT * rotary::kMostN < INT64_MAX / 16 / rotary::kMostP);

constexpr int64_t kItemValues = 16384;  // the rows of a decode step are one item: no thread has to wake

}  // namespace

void rotary_cpu(const RotaryParams& params, const ParallelFor& parallel_for) {
  const int64_t heads = params.T * params.N,
                heads_per_item = std::max<int64_t>(kItemValues / (2 * params.P), 1);
  const TurnFunction turn = FASTMMOE_VARIANT(turn_function);
  parallel_for(divide_up(heads, heads_per_item), [&](int64_t item) {
    turn(params, item * heads_per_item, std::min(heads, (item + 1) * heads_per_item));
  });
}

}  // namespace fastmmoe
