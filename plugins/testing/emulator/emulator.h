// SPDX-License-Identifier: Apache-2.0
// CUDA C++ for a host compiler. common/cuda/launch.h and ptx.cuh include it where FASTMMOE_EMULATOR is
// defined.
#pragma once

// Before the names below become macros.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "testing/emulator/block.h"
#include "testing/emulator/collectives.h"
#include "testing/emulator/grid.h"
#include "testing/emulator/intrinsics.h"
#include "testing/emulator/matrix.h"

#undef __constant__
#undef __launch_bounds__
#undef __shared__
#define __constant__ static
#define __launch_bounds__(...)
// One copy for each OS thread is one for each running block.
#define __shared__ static thread_local

#define threadIdx (::fastmmoe::emulator::thread_state.thread)
#define blockIdx (::fastmmoe::emulator::thread_state.block)
#define blockDim (::fastmmoe::emulator::thread_state.block_dim)
#define gridDim (::fastmmoe::emulator::thread_state.grid_dim)
#define warpSize 32
