// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/gemm.h"

#include "common/variants.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(GemmBlockFunction, gemm_block_function)

GemmBlockFunction gemm_block_for_this_cpu() { return FASTMMOE_VARIANT(gemm_block_function); }

}  // namespace fastmmoe
