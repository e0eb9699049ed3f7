// SPDX-License-Identifier: Apache-2.0
// How the emulator runs kernels. Each library that holds the emulator has its own settings.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmmoe::emulator {

/// Taken at the start of each launch: what set_* asked for, else the environment, else the default.
struct Settings {
  /// FASTMMOE_EMULATOR_SEED. 0 runs warps and lanes in order; any other number is another schedule.
  uint64_t seed = 0;
  /// FASTMMOE_EMULATOR_THREADS. OS threads that run blocks; the default is one for each processor.
  int threads = 1;
  /// FASTMMOE_EMULATOR_ARCH. Compute capability whose limits hold, 80 by default.
  int architecture = 80;
};

/// Throws EmulatorError where a variable is no number or the architecture is not known.
Settings current_settings();

/// Most bytes of dynamic shared memory of a block; throws EmulatorError where the architecture is unknown.
size_t max_dynamic_shared_bytes(int architecture);

}  // namespace fastmmoe::emulator

// For tests in other languages. A negative value gives the choice back to the environment.
extern "C" {
__attribute__((visibility("default"))) void fastmmoe_emulator_set_seed(int64_t seed);
__attribute__((visibility("default"))) void fastmmoe_emulator_set_threads(int64_t threads);
__attribute__((visibility("default"))) void fastmmoe_emulator_set_architecture(int64_t architecture);
}
