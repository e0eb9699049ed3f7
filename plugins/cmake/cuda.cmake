# SPDX-License-Identifier: Apache-2.0
# libfastmmoe_trt.so and libfastmmoe_ort_cuda.so, which link the same objects of the kernels. nvcc runs in custom
# commands: CMake's CUDA language links test programs first, for which the toolkit that pip installs has no libraries
# where nvcc looks for them.

set(FASTMMOE_CUDA_HOME "/usr/local/cuda" CACHE PATH "CUDA toolkit, 12.4 or later")
set(FASTMMOE_CUDART "" CACHE FILEPATH "CUDA runtime library of the target; empty: libcudart_static.a of the toolkit")

set(nvcc "${FASTMMOE_CUDA_HOME}/bin/nvcc")
set(cuda_include "${FASTMMOE_CUDA_HOME}/include")
if(NOT EXISTS "${nvcc}" OR NOT EXISTS "${cuda_include}/cuda_runtime.h")
  message(FATAL_ERROR "FASTMMOE_CUDA_HOME is '${FASTMMOE_CUDA_HOME}', expected a CUDA toolkit with bin/nvcc and "
                      "include/cuda_runtime.h; scripts/fetch_cuda.sh fetches one")
endif()
set(cudart "${FASTMMOE_CUDART}")
foreach(folder lib64 lib)
  if(NOT cudart AND EXISTS "${FASTMMOE_CUDA_HOME}/${folder}/libcudart_static.a")
    set(cudart "${FASTMMOE_CUDA_HOME}/${folder}/libcudart_static.a")
  endif()
endforeach()
if(NOT EXISTS "${cudart}")
  message(FATAL_ERROR "FASTMMOE_CUDART is '${FASTMMOE_CUDART}' and '${FASTMMOE_CUDA_HOME}' has no libcudart_static.a: "
                      "expected the CUDA runtime library of the target")
endif()

# Machine code for every architecture; of the newest also PTX, from which drivers make code for later GPUs. PTX of an
# architecture with a suffix (90a) runs on no later one.
execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known_archs COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9]+" known_archs "${known_archs}")
set(newest 0)
set(gencode "")
foreach(arch IN LISTS FASTMMOE_CUDA_ARCHS)
  string(REGEX REPLACE "[af]$" "" number "${arch}")
  if(NOT number IN_LIST known_archs)
    message(FATAL_ERROR "FASTMMOE_CUDA_ARCHS has '${arch}', expected some of ${known_archs}, which ${nvcc} knows")
  endif()
  string(APPEND gencode "-gencode arch=compute_${arch},code=sm_${arch}\n")
  if(arch STREQUAL number AND arch GREATER newest)
    set(newest ${arch})
  endif()
endforeach()
if(newest GREATER 0)
  string(APPEND gencode "-gencode arch=compute_${newest},code=compute_${newest}\n")
endif()

# In a file that the objects depend on, since make does not see a change of a command. The folders of headers are named
# because nvcc looks for them in a folder of the target when it cross-compiles.
set(nvcc_options "${CMAKE_CURRENT_BINARY_DIR}/nvcc.options")
file(CONFIGURE OUTPUT "${nvcc_options}" CONTENT "-ccbin \"${CMAKE_CXX_COMPILER}\"
-std=c++17 -O3 --threads 2
${gencode}-I \"${CMAKE_CURRENT_SOURCE_DIR}\"
-isystem \"${cuda_include}\" -isystem \"${cuda_include}/cccl\"
-Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra
-Xfatbin -compress-all
")
file(GLOB kernels CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}" attention/cuda/*.cu linear/cuda/*.cu
  sparse_moe/cuda/*.cu token_prune/cuda/*.cu)
set(kernel_objects "")
foreach(kernel IN LISTS kernels)
  set(object "${CMAKE_CURRENT_BINARY_DIR}/kernels/${kernel}.o")
  string(REPLACE " " "\\ " escaped_object "${object}")
  get_filename_component(folder "${object}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  add_custom_command(OUTPUT "${object}"
    COMMAND "${nvcc}" --options-file "${nvcc_options}" -MMD -MF "${object}.d" -MT "${escaped_object}"
            -c "${CMAKE_CURRENT_SOURCE_DIR}/${kernel}" -o "${object}"
    DEPENDS "${kernel}" "${nvcc_options}" "${nvcc}"
    DEPFILE "${object}.d" VERBATIM)
  list(APPEND kernel_objects "${object}")
endforeach()
add_custom_target(fastmmoe_kernels DEPENDS ${kernel_objects})

# Makes all libraries from one state of the kernels, though their sources may change meanwhile.
add_custom_target(fastmmoe_cuda)

# add_cuda_library(NAME INCLUDE SOURCE...): a shared library of the sources, compiled with the framework's headers in
# INCLUDE, and of the kernels.
function(add_cuda_library name include)
  add_library(${name} SHARED ${ARGN} $<TARGET_OBJECTS:fastmmoe_nodes> ${kernel_objects})
  # Without this a parallel build would make the kernels once for each library.
  add_dependencies(${name} fastmmoe_kernels)
  add_dependencies(fastmmoe_cuda ${name})
  target_include_directories(${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
  target_include_directories(${name} SYSTEM PRIVATE "${include}" "${cuda_include}")
  target_compile_definitions(${name} PRIVATE FASTMMOE_VERSION="${FASTMMOE_VERSION}")
  target_compile_options(${name} PRIVATE -Wall -Wextra)
  target_link_libraries(${name} PRIVATE "${cudart}" dl rt pthread)
endfunction()

if(FASTMMOE_TENSORRT_INCLUDE)
  file(GLOB sources CONFIGURE_DEPENDS tensorrt/*.cpp)
  add_cuda_library(fastmmoe_trt "${FASTMMOE_TENSORRT_INCLUDE}" ${sources})
  export_only(fastmmoe_trt tensorrt)
endif()
if(FASTMMOE_ORT_INCLUDE)
  file(GLOB sources CONFIGURE_DEPENDS onnxruntime/cuda/*.cpp)
  add_cuda_library(fastmmoe_ort_cuda "${FASTMMOE_ORT_INCLUDE}"
    onnxruntime/glue.cpp onnxruntime/infer.cpp onnxruntime/register.cpp ${sources})
  target_compile_definitions(fastmmoe_ort_cuda PRIVATE ORT_API_MANUAL_INIT)
  export_only(fastmmoe_ort_cuda onnxruntime)
endif()
