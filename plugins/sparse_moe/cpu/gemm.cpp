// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/gemm.h"

#include "common/processor.h"

namespace fastmmoe {

namespace baseline {
void gemm_block(const GemmBlock& block);
}
#ifdef FASTMMOE_X86
namespace avx2 {
void gemm_block(const GemmBlock& block);
}
namespace avx512 {
void gemm_block(const GemmBlock& block);
}
#endif

GemmBlockFunction gemm_block_for_this_cpu() {
#ifdef FASTMMOE_X86
  const Isa isa = isa_of_this_cpu();
  if (isa >= Isa::kAvx512) return avx512::gemm_block;
  if (isa == Isa::kAvx2) return avx2::gemm_block;
#endif
  return baseline::gemm_block;
}

}  // namespace fastmmoe
