// SPDX-License-Identifier: Apache-2.0
#include "common/processor.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string>

#include "common/check.h"

#if defined(FASTMMOE_X86) && !defined(FASTMMOE_SOFTWARE_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef FASTMMOE_AARCH64
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fastmmoe {
namespace {

constexpr const char* kVariable = "FASTMMOE_CPU_ISA";
#ifdef FASTMMOE_AARCH64
constexpr const char* kNames[] = {"baseline", "dotprod"};
constexpr const char* kExpected = "baseline or dotprod";
#else
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"};
constexpr const char* kExpected = "baseline, avx2, avx512, avx512_vnni, avx512_bf16 or amx_bf16";
#endif
constexpr Isa kWidest = static_cast<Isa>(std::size(kNames) - 1);

#ifdef FASTMMOE_X86
// Linux lets a process use tile registers, in all of its threads, once it has asked for them.
bool may_use_tiles() {
#ifdef FASTMMOE_SOFTWARE_TILES
  return true;
#else
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#endif
}
#endif

Isa widest_isa([[maybe_unused]] Isa allowed) {
#ifdef FASTMMOE_X86
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#ifdef FASTMMOE_STAND_IN
  if (has_avx2) return allowed;
#endif
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
    if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Vnni;
    return allowed == Isa::kAmxBf16 && may_use_tiles() ? Isa::kAmxBf16 : Isa::kAvx512Bf16;
  }
  if (has_avx2) return Isa::kAvx2;
#endif
#ifdef FASTMMOE_AARCH64
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) return Isa::kDotprod;
#endif
  return Isa::kBaseline;
}

Isa allowed_isa() {
  const char* value = std::getenv(kVariable);
  if (value == nullptr || *value == '\0') return kWidest;
  const auto* found = std::find(std::begin(kNames), std::end(kNames), std::string(value));
  CHECK(found != std::end(kNames), kVariable, " is '", value, "', expected ", kExpected);
  return static_cast<Isa>(found - std::begin(kNames));
}

}  // namespace

Isa isa_of_this_cpu() {
  static const Isa isa = [] {
    const Isa allowed = allowed_isa();
    return std::min(widest_isa(allowed), allowed);
  }();
  return isa;
}

}  // namespace fastmmoe

/// Name of the instruction set of the CPU kernels; null where FASTMMOE_CPU_ISA has none of them.
extern "C" __attribute__((visibility("default"))) const char* FmmCpuIsa() {
  try {
    return fastmmoe::kNames[static_cast<int>(fastmmoe::isa_of_this_cpu())];
  } catch (const fastmmoe::CheckError&) {
    return nullptr;
  }
}
