// SPDX-License-Identifier: Apache-2.0
#include "common/processor.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "common/check.h"

namespace fastmmoe {
namespace {

constexpr const char* kVariable = "FASTMMOE_CPU_ISA";
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

Isa widest_isa() {
#ifdef FASTMMOE_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  }
  if (has_avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa allowed_isa() {
  const char* value = std::getenv(kVariable);
  if (value == nullptr) return Isa::kAvx512Bf16;
  const auto* found = std::find(std::begin(kNames), std::end(kNames), std::string(value));
  CHECK(found != std::end(kNames), kVariable, " is '", value,
        "', expected baseline, avx2, avx512 or avx512_bf16");
  return static_cast<Isa>(found - std::begin(kNames));
}

}  // namespace

Isa isa_of_this_cpu() {
  static const Isa isa = std::min(widest_isa(), allowed_isa());
  return isa;
}

}  // namespace fastmmoe
