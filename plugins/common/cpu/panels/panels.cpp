// SPDX-License-Identifier: Apache-2.0
#include "common/cpu/panels/panels.h"

#include "common/cpu/panels/kernels.h"
#include "common/divide.h"
#include "common/variants.h"

namespace fastmmoe {

FASTMMOE_VARIANTS(PanelKernels, panel_kernels)

#ifdef FASTMMOE_AARCH64
namespace dotprod {
PanelKernels panel_kernels();
}
#endif
#ifdef FASTMMOE_X86
namespace avx512_vnni {
PanelKernels panel_kernels();
}
namespace avx512_bf16 {
PanelKernels panel_kernels();
}
namespace amx_bf16 {
TileKernels tile_kernels();
}
#endif

namespace {

constexpr int64_t kRowAlignment = 64;
constexpr int64_t kManyRows = 8;  // fill at least half of a tile register

PanelKernels kernels_of(Isa isa) {
#ifdef FASTMMOE_X86
  if (isa >= Isa::kAvx512Bf16) {
    PanelKernels found = avx512_bf16::panel_kernels();
    if (isa == Isa::kAmxBf16) {
      const TileKernels tiles = amx_bf16::tile_kernels();
      found.bfloat16.multiply = tiles.few_bfloat16;
      found.bfloat16.multiply_many = tiles.many_bfloat16;
      found.int8.multiply_many = tiles.many_int8;
    }
    return found;
  }
  if (isa == Isa::kAvx512Vnni) return avx512_vnni::panel_kernels();
  if (isa == Isa::kAvx512) {
    PanelKernels found = avx512::panel_kernels();
    found.int8 = avx2::panel_kernels().int8;
    return found;
  }
  if (isa == Isa::kAvx2) return avx2::panel_kernels();
#endif
#ifdef FASTMMOE_AARCH64
  if (isa == Isa::kDotprod) return dotprod::panel_kernels();
#endif
  static_cast<void>(isa);
  return baseline::panel_kernels();
}

const PanelKernels& kernels() {
  static const PanelKernels found = kernels_of(isa_of_this_cpu());
  return found;
}

const PanelKernel& kernel_of(PanelArithmetic arithmetic) {
  if (arithmetic == PanelArithmetic::kBfloat16) return kernels().bfloat16;
  return arithmetic == PanelArithmetic::kInt8 ? kernels().int8 : kernels().floats;
}

PanelArithmetic arithmetic_of(PanelFormat format) {
  const bool is_float = format == PanelFormat::kBfloat16;
  const PanelArithmetic fast = is_float ? PanelArithmetic::kBfloat16 : PanelArithmetic::kInt8;
  return kernel_of(fast).multiply == nullptr ? PanelArithmetic::kFloat : fast;
}

int64_t rounded_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

}  // namespace

int64_t panel_bytes(PanelFormat format, int64_t columns) {
  const int64_t word = format == PanelFormat::kBfloat16 ? 2 : format == PanelFormat::kInt8 ? 4 : 8;
  return divide_up(columns, word) * kPanelOutputs * 4;
}

PanelRows panel_rows(PanelFormat format, int64_t columns, int64_t group_size, bool is_exact) {
  const PanelArithmetic arithmetic = is_exact ? PanelArithmetic::kFloat : arithmetic_of(format);
  PanelRows rows{arithmetic, format, columns, group_size, 0, 0, 0};
  if (arithmetic == PanelArithmetic::kInt8) {
    const int64_t groups = rounded_up(divide_up(columns, group_size) * 4, kRowAlignment);
    rows.scales = rounded_up(columns, kRowAlignment);
    rows.corrections = rows.scales + groups;
    rows.bytes = rows.corrections + groups;
  } else {
    rows.bytes = rounded_up(columns * (arithmetic == PanelArithmetic::kFloat ? 4 : 2), kRowAlignment);
  }
  return rows;
}

void PanelRows::prepare(const float* x, int64_t first, int64_t count, std::byte* row) const {
  kernel_of(arithmetic).prepare(*this, x, first, count, row);
}

void multiply_panels(const PanelProduct& product) {
  const PanelKernel& kernel = kernel_of(product.layout->arithmetic);
  const bool are_many = product.count >= kManyRows && kernel.multiply_many != nullptr;
  (are_many ? kernel.multiply_many : kernel.multiply)(product);
}

}  // namespace fastmmoe
