// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/gemm.h"

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
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return avx512::gemm_block;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::gemm_block;
#endif
  return baseline::gemm_block;
}

}  // namespace fastmmoe
