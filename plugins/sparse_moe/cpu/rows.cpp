// SPDX-License-Identifier: Apache-2.0
#include "sparse_moe/cpu/rows.h"

#include "common/processor.h"

namespace fastmmoe {

namespace baseline {
RowFunctions row_functions();
}
#ifdef FASTMMOE_X86
namespace avx2 {
RowFunctions row_functions();
}
namespace avx512 {
RowFunctions row_functions();
}
#endif

RowFunctions row_functions_for_this_cpu() {
#ifdef FASTMMOE_X86
  const Isa isa = isa_of_this_cpu();
  if (isa >= Isa::kAvx512) return avx512::row_functions();
  if (isa == Isa::kAvx2) return avx2::row_functions();
#endif
  return baseline::row_functions();
}

}  // namespace fastmmoe
