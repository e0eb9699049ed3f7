// SPDX-License-Identifier: Apache-2.0
// Kernels that are compiled once for each instruction set: which of them runs.
#pragma once

#include "common/processor.h"

// FASTMMOE_VARIANTS(Functions, name) declares what the files of each instruction set define, `Functions
// name()`; FASTMMOE_VARIANT(name) is what the one for this processor gives.
#ifdef FASTMMOE_X86
#define FASTMMOE_VARIANTS(Functions, name) \
  namespace baseline {                     \
  Functions name();                        \
  }                                        \
  namespace avx2 {                         \
  Functions name();                        \
  }                                        \
  namespace avx512 {                       \
  Functions name();                        \
  }
#define FASTMMOE_VARIANT(name)                        \
  (isa_of_this_cpu() >= Isa::kAvx512 ? avx512::name() \
   : isa_of_this_cpu() == Isa::kAvx2 ? avx2::name()   \
                                     : baseline::name())
#else
#define FASTMMOE_VARIANTS(Functions, name) \
  namespace baseline {                     \
  Functions name();                        \
  }
#define FASTMMOE_VARIANT(name) baseline::name()
#endif
