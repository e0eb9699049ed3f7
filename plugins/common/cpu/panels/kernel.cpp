// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set with FASTMMOE_ISA = its name. It uses no function of the standard
// library that could be shared with other files: the linker would then run one instruction set everywhere.
#include "common/cpu/panels/float_products.h"
#include "common/cpu/panels/kernels.h"

#if defined(__AVX512BF16__) || defined(FASTMMOE_STAND_IN)
#define FASTMMOE_HAS_PAIRS
#include "common/cpu/panels/pair_products.h"
#endif
// AVX-512 alone has no such operations; panels.cpp takes those of AVX2.
#if defined(__AVX512VNNI__) || (defined(__AVX2__) && !defined(__AVX512F__)) || defined(__ARM_FEATURE_DOTPROD)
#define FASTMMOE_HAS_BYTE_DOTS
#include "common/cpu/panels/byte_products.h"
#include "common/cpu/panels/byte_rows.h"
#endif

namespace fastmmoe::FASTMMOE_ISA {

PanelKernels panel_kernels();  // panels.cpp names it
PanelKernels panel_kernels() {
  PanelKernels kernels{{prepare_floats, multiply_floats, nullptr}, {}, {}};
#ifdef FASTMMOE_HAS_PAIRS
  kernels.bfloat16 = {prepare_pairs, multiply_pairs, nullptr};
#endif
#ifdef FASTMMOE_HAS_BYTE_DOTS
  kernels.int8 = {prepare_bytes, multiply_bytes, nullptr};
#endif
  return kernels;
}

}  // namespace fastmmoe::FASTMMOE_ISA
