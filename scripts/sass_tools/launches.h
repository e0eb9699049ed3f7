// SPDX-License-Identifier: Apache-2.0
// launches.cpp calls the kernels' host code; record.cpp or trace.cpp stands in for what is below it.
#pragma once

#include <cstddef>
#include <istream>

/// Zeros, aligned to 256 bytes, that live until the program ends.
void* device_memory(size_t bytes);

/// Whether device_memory gives memory. Otherwise kernels do not run, and it gives an address that nothing
/// reads.
extern const bool kRunsKernels;

/// The compute capability of the device from now on.
void set_architecture(int architecture);

/// What follows "widths" in the input: for every launch of the next case, the most bytes of shared memory
/// that an instruction of the kernel loads, and the most that one stores, for a lane.
void read_widths(std::istream& widths);
