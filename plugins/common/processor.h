// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fastmmoe {

/// Instruction sets for which kernels are compiled, each with those before it.
#ifdef FASTMMOE_AARCH64
enum class Isa { kBaseline, kDotprod };
#else
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmxBf16 };
#endif

/// The widest that this processor has and the system lets this process use, no wider than the environment
/// variable FASTMMOE_CPU_ISA names (baseline, avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16; on arm64
/// baseline, dotprod). kAmxBf16 has AMX's int8, too. Looked at once; empty is as good as unset. Throws
/// CheckError where the variable names none of them.
Isa isa_of_this_cpu();

}  // namespace fastmmoe
