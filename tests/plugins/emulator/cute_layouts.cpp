// SPDX-License-Identifier: Apache-2.0
// Prints CuTe's layouts of the matrix instructions, one line "name lane value offset" each: for a, b and d
// the column-major offset of an element of the matrix, for ldmatrix that of a 16-bit element in the rows.
#include <cuda_runtime.h>

#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>

template <typename Layout>
void print(const char* name, const char* part, int values, int step, Layout layout) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int value = 0; value < values; ++value) {
      std::printf("%s.%s %d %d %d\n", name, part, lane, value,
                  static_cast<int>(layout(lane, value * step)) / step);
    }
  }
}

template <typename Operation>
void print_multiply(const char* name, int values_per_register) {
  using Traits = cute::MMA_Traits<Operation>;
  print(name, "a", 4 * values_per_register, 1, typename Traits::ALayout{});
  print(name, "b", 2 * values_per_register, 1, typename Traits::BLayout{});
  print(name, "d", 4, 1, typename Traits::CLayout{});
}

template <typename Operation>
void print_load(const char* name, int matrices) {
  print(name, "rows", 2 * matrices, 16, typename cute::Copy_Traits<Operation>::DstLayout{});
}

int main() {
  print_multiply<cute::SM80_16x8x16_F32F16F16F32_TN>("multiply_f16", 2);
  print_multiply<cute::SM80_16x8x16_F32BF16BF16F32_TN>("multiply_bf16", 2);
  print_multiply<cute::SM80_16x8x32_S32S8S8S32_TN>("multiply_s8", 4);
  print_load<cute::SM75_U32x1_LDSM_N>("load_x1", 1);
  print_load<cute::SM75_U32x2_LDSM_N>("load_x2", 2);
  print_load<cute::SM75_U32x4_LDSM_N>("load_x4", 4);
  print_load<cute::SM75_U16x2_LDSM_T>("load_x1_transposed", 1);
  print_load<cute::SM75_U16x4_LDSM_T>("load_x2_transposed", 2);
  print_load<cute::SM75_U16x8_LDSM_T>("load_x4_transposed", 4);
}
