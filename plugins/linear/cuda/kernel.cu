// SPDX-License-Identifier: Apache-2.0
// One kernel: of few rows by linear_few, of more by linear_tiles.
#include "common/check.h"
#include "linear/cuda/kernel.h"
#include "linear/cuda/products.h"

namespace fastmmoe {

using namespace linear;

void check_linear(const LinearKernelParams& params) {
  const bool is_int4 = params.attributes.weight_format == WeightFormat::kInt4;
  CHECK(params.attributes.weight_format != WeightFormat::kFloat,
        "FmmLinear: attribute weight_format is float, expected int8 or int4 on CUDA");
  CHECK(params.type != FloatType::kFloat, "FmmLinear: x is float, expected float16 or bfloat16 on CUDA");
  const int64_t depth = is_int4 ? kInt4ProductDepth : kProductDepth;
  CHECK(params.K > 0 && params.K % depth == 0, "FmmLinear: K is ", params.K, ", expected a multiple of ",
        depth, is_int4 ? " with int4 weights" : "", " on CUDA");
  CHECK(params.N > 0 && params.N % kLinearOutputs == 0, "FmmLinear: N is ", params.N,
        ", expected a multiple of ", kLinearOutputs, " on CUDA");
}

void launch_linear(const LinearKernelParams& params, cudaStream_t stream) {
  check_linear(params);
  if (params.T == 0) return;
  if (params.attributes.weight_format == WeightFormat::kInt8) {
    launch_int8_products(params, stream);
  } else {
    launch_int4_products(params, stream);
  }
}

}  // namespace fastmmoe
