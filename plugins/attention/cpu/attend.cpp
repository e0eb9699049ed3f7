// SPDX-License-Identifier: Apache-2.0
#include "attention/cpu/attend.h"

#include "common/variants.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(AttendFunctions, attend_functions)

#ifdef FASTMMOE_X86
namespace avx512_bf16 {
AttendFunctions attend_functions();
}
namespace amx_bf16 {
void attend_many_with_tiles(const AttendBlock& block);
}

namespace {

// Tile registers multiply bfloat16 alone.
void attend_many_amx(const AttendBlock& block) {
  if (block.cache_type == FloatType::kBfloat16) return amx_bf16::attend_many_with_tiles(block);
  avx512::attend_functions().many_rows(block);
}

}  // namespace
#endif

AttendFunctions attend_for_this_cpu() {
#ifdef FASTMMOE_X86
  switch (isa_of_this_cpu()) {
    case Isa::kAmxBf16: {
      AttendFunctions functions = avx512_bf16::attend_functions();
      functions.many_rows = attend_many_amx;
      return functions;
    }
    case Isa::kAvx512Bf16: {
      AttendFunctions functions = avx512_bf16::attend_functions();
      // Intel's multiply pairs of bfloat16 at half the rate of float, AMD's at twice. Where few rows wait for
      // memory that does not matter.
      if (__builtin_cpu_is("intel")) functions.many_rows = avx512::attend_functions().many_rows;
      return functions;
    }
    case Isa::kAvx512Vnni:
    case Isa::kAvx512:
      return avx512::attend_functions();
    case Isa::kAvx2:
      return avx2::attend_functions();
    case Isa::kBaseline:
      break;
  }
#endif
  return baseline::attend_functions();
}

}  // namespace fastmmoe
