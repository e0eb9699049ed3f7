# SPDX-License-Identifier: Apache-2.0
# libfastmmoe_ort.so: the operators for ONNX Runtime's CPU provider.

include(cmake/isas.cmake)

compile_attention()
compile_panels()
compile_operators()

add_library(fastmmoe_ort SHARED
  ${attention_sources}
  ${panel_sources}
  ${operator_sources}
  onnxruntime/attention_op.cpp
  onnxruntime/glue.cpp
  onnxruntime/infer.cpp
  onnxruntime/library_ops.cpp
  onnxruntime/linear_op.cpp
  onnxruntime/older_library.cpp
  onnxruntime/register.cpp
  onnxruntime/rotary_op.cpp
  onnxruntime/sparse_moe_op.cpp
  onnxruntime/token_prune_op.cpp
  onnxruntime/vision_attention_op.cpp
  token_prune/cpu/kernel.cpp
  ${isa_objects}
  $<TARGET_OBJECTS:fastmmoe_nodes>)
target_include_directories(fastmmoe_ort PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_include_directories(fastmmoe_ort SYSTEM PRIVATE "${FASTMMOE_ORT_INCLUDE}")
target_compile_definitions(fastmmoe_ort PRIVATE ORT_API_MANUAL_INIT FASTMMOE_VERSION="${FASTMMOE_VERSION}")
target_compile_definitions(fastmmoe_ort PRIVATE ${isa_definitions})
# Without contraction a choice between equal scores comes out the same on every processor.
target_compile_options(fastmmoe_ort PRIVATE -Wall -Wextra -ffp-contract=off)
export_only(fastmmoe_ort onnxruntime)
