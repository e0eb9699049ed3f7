// SPDX-License-Identifier: Apache-2.0
#include "rotary/cpu/kernel.h"

#include <algorithm>
#include <cstdint>

#include "common/divide.h"
#include "common/processor.h"
#include "rotary/contract.h"
#include "rotary/cpu/turn.h"

namespace fastmmoe {

namespace baseline {
TurnFunction turn_function();
}
#ifdef FASTMMOE_X86
namespace avx2 {
TurnFunction turn_function();
}
namespace avx512 {
TurnFunction turn_function();
}
#endif

namespace {

static_assert(rotary::kMostT * rotary::kMostN < INT64_MAX / 16 / rotary::kMostP);

constexpr int64_t kItemValues = 16384;  // the rows of a decode step are one item: no thread has to wake

}  // namespace

TurnFunction turn_for_this_cpu() {
#ifdef FASTMMOE_X86
  if (isa_of_this_cpu() >= Isa::kAvx512) return avx512::turn_function();
  if (isa_of_this_cpu() == Isa::kAvx2) return avx2::turn_function();
#endif
  return baseline::turn_function();
}

void rotary_cpu(const RotaryParams& params, const ParallelFor& parallel_for) {
  const int64_t heads = params.T * params.N,
                heads_per_item = std::max<int64_t>(kItemValues / (2 * params.P), 1);
  const TurnFunction turn = turn_for_this_cpu();
  parallel_for(divide_up(heads, heads_per_item), [&](int64_t item) {
    turn(params, item * heads_per_item, std::min(heads, (item + 1) * heads_per_item));
  });
}

}  // namespace fastmmoe
