// SPDX-License-Identifier: Apache-2.0
#include "linear/cpu/finish.h"

#include "common/processor.h"

namespace fastmmoe {

namespace baseline {
FinishFunction finish_function();
}
#ifdef FASTMMOE_X86
namespace avx2 {
FinishFunction finish_function();
}
namespace avx512 {
FinishFunction finish_function();
}
#endif

FinishFunction finish_for_this_cpu() {
#ifdef FASTMMOE_X86
  if (isa_of_this_cpu() >= Isa::kAvx512) return avx512::finish_function();
  if (isa_of_this_cpu() == Isa::kAvx2) return avx2::finish_function();
#endif
  return baseline::finish_function();
}

}  // namespace fastmmoe
