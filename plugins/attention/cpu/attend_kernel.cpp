// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function that could be
// shared with other files: the linker would then run one instruction set everywhere.
#include "attention/cpu/few_rows.h"
#include "attention/cpu/many_rows.h"

namespace fastmmoe::FASTMMOE_ISA {
namespace {

template <template <typename> class Rows>
void attend(const AttendBlock& block) {
#ifdef __AVX512BF16__
  if (block.cache_type == FloatType::kBfloat16) return Rows<Pairs>(block).run();
#endif
  Rows<Floats>(block).run();
}

}  // namespace

AttendFunctions attend_functions();  // attend.cpp names it
AttendFunctions attend_functions() { return {attend<FewRows>, attend<ManyRows>, round_floats}; }

}  // namespace fastmmoe::FASTMMOE_ISA
