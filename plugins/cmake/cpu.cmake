# SPDX-License-Identifier: Apache-2.0
# libfastmmoe_ort.so: the operators for ONNX Runtime's CPU provider.

# The matrix kernel once for each instruction set; the processor decides at run time.
set(isas baseline)
set(baseline_flags "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND isas avx2 avx512)
  set(avx2_flags -mavx2 -mfma)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
endif()
foreach(isa IN LISTS isas)
  add_library(gemm_${isa} OBJECT sparse_moe/cpu/gemm_kernel.cpp)
  target_include_directories(gemm_${isa} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_definitions(gemm_${isa} PRIVATE FASTMMOE_ISA=${isa})
  target_compile_options(gemm_${isa} PRIVATE -Wall -Wextra -ffp-contract=fast ${${isa}_flags})
  list(APPEND gemm_objects $<TARGET_OBJECTS:gemm_${isa}>)
endforeach()

add_library(fastmmoe_ort SHARED
  onnxruntime/glue.cpp
  onnxruntime/older_library.cpp
  onnxruntime/register.cpp
  onnxruntime/sparse_moe_op.cpp
  onnxruntime/token_prune_op.cpp
  sparse_moe/cpu/kernel.cpp
  sparse_moe/cpu/gemm.cpp
  sparse_moe/cpu/route.cpp
  token_prune/cpu/kernel.cpp
  ${gemm_objects}
  $<TARGET_OBJECTS:fastmmoe_nodes>)
target_include_directories(fastmmoe_ort PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_include_directories(fastmmoe_ort SYSTEM PRIVATE "${FASTMMOE_ORT_INCLUDE}")
target_compile_definitions(fastmmoe_ort PRIVATE ORT_API_MANUAL_INIT FASTMMOE_VERSION="${FASTMMOE_VERSION}")
if("avx2" IN_LIST isas)
  target_compile_definitions(fastmmoe_ort PRIVATE FASTMMOE_X86)
endif()
# Without contraction a choice between equal scores comes out the same on every processor.
target_compile_options(fastmmoe_ort PRIVATE -Wall -Wextra -ffp-contract=off)
export_only(fastmmoe_ort onnxruntime)
