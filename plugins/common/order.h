// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

namespace fastmmoe {

/// Order of every choice: greater first, NaN after all numbers. Equal values keep the smaller index first,
/// which callers get by a stable sort. Holds for any float, so sorting never sees an inconsistent order.
inline bool is_better(float a, float b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

}  // namespace fastmmoe
