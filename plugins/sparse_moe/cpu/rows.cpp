// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/rows.h"

#include "common/variants.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(RowFunctions, row_functions)

RowFunctions row_functions_for_this_cpu() { return FASTMMOE_VARIANT(row_functions); }

}  // namespace fastmmoe
