# SPDX-License-Identifier: Apache-2.0
# Of the libraries and of the programs that test their kernels: what is compiled for several instruction sets.

# Some kernels once for each instruction set (common/processor.h); the processor decides at run time.
set(plugins_dir "${CMAKE_CURRENT_LIST_DIR}/..")
set(isas baseline)
set(isa_definitions "")
set(baseline_flags "")
option(FASTMMOE_BASELINE_ALONE "The baseline's kernels alone: for tests that have little time to compile" OFF)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT FASTMMOE_BASELINE_ALONE)
  list(APPEND isas avx2 avx512)
  list(APPEND isa_definitions FASTMMOE_X86)
  set(avx2_flags -mavx2 -mfma -mf16c)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
  set(avx512_vnni_flags ${avx512_flags} -mavx512vnni)
  set(avx512_bf16_flags ${avx512_vnni_flags} -mavx512bf16)
  set(amx_bf16_flags ${avx512_bf16_flags} -mamx-tile -mamx-bf16 -mamx-int8)
elseif(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
  list(APPEND isa_definitions FASTMMOE_AARCH64)
  set(dotprod_flags -march=armv8.2-a+dotprod)
endif()

# For tests. With avx2, that stands in for all wider sets, each of which a program then runs if it is told to; the
# baseline's and AVX2's own kernels are as ever.
set(FASTMMOE_SOFTWARE_TILES "" CACHE STRING
    "avx512_bf16 or avx2: AMX's tile registers are in memory, beside vectors of this instruction set")
if(FASTMMOE_SOFTWARE_TILES)
  list(APPEND isa_definitions FASTMMOE_SOFTWARE_TILES)
  if(FASTMMOE_SOFTWARE_TILES STREQUAL "avx2")
    set_source_files_properties("${plugins_dir}/common/processor.cpp" PROPERTIES COMPILE_DEFINITIONS FASTMMOE_STAND_IN)
    foreach(isa avx512 avx512_vnni)
      set(${isa}_flags ${avx2_flags})
    endforeach()
    set(avx512_bf16_flags ${avx2_flags} -DFASTMMOE_STAND_IN)
  endif()
  set(amx_bf16_flags ${avx512_bf16_flags})
endif()

# compile_for(ISA NAME SOURCE): adds the object files of SOURCE to isa_objects.
function(compile_for isa name source)
  set(library ${name}_${isa})
  add_library(${library} OBJECT "${plugins_dir}/${source}")
  target_include_directories(${library} PRIVATE "${plugins_dir}")
  target_compile_definitions(${library} PRIVATE FASTMMOE_ISA=${isa} ${isa_definitions})
  target_compile_options(${library} PRIVATE -Wall -Wextra -ffp-contract=fast ${${isa}_flags})
  set(isa_objects ${isa_objects} $<TARGET_OBJECTS:${library}> PARENT_SCOPE)
endfunction()

# FmmAttention on the CPU, without the nodes that call it.
set(attention_sources "")
foreach(source attend caches kernel plan scratch)
  list(APPEND attention_sources "${plugins_dir}/attention/cpu/${source}.cpp")
endforeach()
list(APPEND attention_sources "${plugins_dir}/common/processor.cpp")

# Products with weights in tile order, without the nodes that use them.
set(panel_sources "${plugins_dir}/common/cpu/panels/panels.cpp")

# compile_panels(): adds their object files to isa_objects.
macro(compile_panels)
  foreach(isa IN LISTS isas)
    compile_for(${isa} panels common/cpu/panels/kernel.cpp)
  endforeach()
  if("avx2" IN_LIST isas)
    compile_for(avx512_vnni panels common/cpu/panels/kernel.cpp)
    compile_for(avx512_bf16 panels common/cpu/panels/kernel.cpp)
    compile_for(amx_bf16 panels common/cpu/panels/tile_kernel.cpp)
  elseif("FASTMMOE_AARCH64" IN_LIST isa_definitions)
    compile_for(dotprod panels common/cpu/panels/kernel.cpp)
  endif()
endmacro()

# compile_attention(): adds its object files to isa_objects. Only attention has products of bfloat16.
macro(compile_attention)
  foreach(isa IN LISTS isas)
    compile_for(${isa} attend attention/cpu/attend_kernel.cpp)
  endforeach()
  if("avx2" IN_LIST isas)
    compile_for(avx512_bf16 attend attention/cpu/attend_kernel.cpp)
    compile_for(amx_bf16 attend attention/cpu/attend_tiles.cpp)
  endif()
endmacro()

# FmmSparseMoE, FmmLinear, FmmRotary and FmmVisionAttention on the CPU, without the nodes that call them.
set(operator_sources
  "${plugins_dir}/common/cpu/scratch.cpp"
  "${plugins_dir}/linear/cpu/finish.cpp"
  "${plugins_dir}/linear/cpu/kernel.cpp"
  "${plugins_dir}/rotary/cpu/kernel.cpp"
  "${plugins_dir}/vision_attention/cpu/kernel.cpp")
foreach(source dequantise gemm kernel logical plan route rows tiled)
  list(APPEND operator_sources "${plugins_dir}/sparse_moe/cpu/${source}.cpp")
endforeach()

# compile_operators(): adds their object files, beside those of attention and panels, to isa_objects.
macro(compile_operators)
  foreach(isa IN LISTS isas)
    compile_for(${isa} gemm sparse_moe/cpu/gemm_kernel.cpp)
    compile_for(${isa} rows sparse_moe/cpu/rows_kernel.cpp)
    compile_for(${isa} finish linear/cpu/finish_kernel.cpp)
    compile_for(${isa} turn rotary/cpu/turn_kernel.cpp)
  endforeach()
endmacro()
