// SPDX-License-Identifier: Apache-2.0
// Norm and rotary positions of some heads: the part that is compiled for each instruction set.
#pragma once

#include <cstdint>

#include "rotary/params.h"

namespace fastmmoe {

/// Writes heads `begin` to `end` of the T * N.
using TurnFunction = void (*)(const RotaryParams& params, int64_t begin, int64_t end);

}  // namespace fastmmoe
