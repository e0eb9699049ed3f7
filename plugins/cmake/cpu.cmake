# SPDX-License-Identifier: Apache-2.0
# libfastmmoe_ort.so: the operators for ONNX Runtime's CPU provider.

# Some kernels once for each instruction set (common/processor.h); the processor decides at run time.
set(isas baseline)
set(baseline_flags "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND isas avx2 avx512)
  set(avx2_flags -mavx2 -mfma)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
  set(avx512_bf16_flags ${avx512_flags} -mavx512bf16)
endif()

# compile_for(ISA NAME SOURCE): adds the object files of SOURCE to isa_objects.
function(compile_for isa name source)
  set(library ${name}_${isa})
  add_library(${library} OBJECT ${source})
  target_include_directories(${library} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_definitions(${library} PRIVATE FASTMMOE_ISA=${isa})
  target_compile_options(${library} PRIVATE -Wall -Wextra -ffp-contract=fast ${${isa}_flags})
  set(isa_objects ${isa_objects} $<TARGET_OBJECTS:${library}> PARENT_SCOPE)
endfunction()

foreach(isa IN LISTS isas)
  compile_for(${isa} gemm sparse_moe/cpu/gemm_kernel.cpp)
  compile_for(${isa} attend attention/cpu/attend_kernel.cpp)
endforeach()
if(avx512_bf16_flags)
  compile_for(avx512_bf16 attend attention/cpu/attend_kernel.cpp)
endif()

add_library(fastmmoe_ort SHARED
  attention/cpu/attend.cpp
  attention/cpu/caches.cpp
  attention/cpu/kernel.cpp
  attention/cpu/plan.cpp
  common/processor.cpp
  onnxruntime/attention_op.cpp
  onnxruntime/glue.cpp
  onnxruntime/infer.cpp
  onnxruntime/older_library.cpp
  onnxruntime/register.cpp
  onnxruntime/sparse_moe_op.cpp
  onnxruntime/token_prune_op.cpp
  sparse_moe/cpu/kernel.cpp
  sparse_moe/cpu/gemm.cpp
  sparse_moe/cpu/route.cpp
  token_prune/cpu/kernel.cpp
  ${isa_objects}
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
