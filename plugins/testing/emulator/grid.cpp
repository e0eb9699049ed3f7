// SPDX-License-Identifier: Apache-2.0
#include "testing/emulator/grid.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "testing/emulator/block.h"
#include "testing/emulator/settings.h"

namespace fastmmoe::emulator {
namespace {

std::string triple(const dim3& v) {
  return std::to_string(v.x) + "x" + std::to_string(v.y) + "x" + std::to_string(v.z);
}

void check_at_most(const Launch& launch, const char* what, uint64_t found, uint64_t least, uint64_t most) {
  if (found >= least && found <= most) return;
  throw EmulatorError("kernel '" + launch.kernel + "' cannot be launched: " + what + " is " +
                      std::to_string(found) + ", expected " + std::to_string(least) + " to " +
                      std::to_string(most) + " (grid " + triple(launch.grid) + ", block " +
                      triple(launch.block) + ")");
}

// CUDA C++ Programming Guide, technical specifications for each compute capability.
void check_launch(const Launch& launch, const Settings& settings) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  check_at_most(launch, "grid x", grid.x, 1, std::numeric_limits<int32_t>::max());
  check_at_most(launch, "grid y", grid.y, 1, 65535);
  check_at_most(launch, "grid z", grid.z, 1, 65535);
  check_at_most(launch, "block x", block.x, 1, 1024);
  check_at_most(launch, "block y", block.y, 1, 1024);
  check_at_most(launch, "block z", block.z, 1, 64);
  check_at_most(launch, "the number of threads in a block", uint64_t{block.x} * block.y * block.z, 1, 1024);
  const std::string shared = "dynamic shared memory in bytes on sm_" + std::to_string(settings.architecture);
  check_at_most(launch, shared.c_str(), launch.shared_bytes, 0,
                max_dynamic_shared_bytes(settings.architecture));
}

// Visits 0 .. count-1 in order, or with a seed in another order.
class BlockOrder {
 public:
  BlockOrder(uint64_t count, uint64_t seed) : count_(count) {
    if (seed == 0) return;
    const uint64_t number = seed * 0x9e3779b97f4a7c15 >> 16;  // far apart for neighbouring seeds
    offset_ = number % count;
    step_ = number / count % count;
    while (std::gcd(step_, count) != 1) ++step_;
  }
  /// The next block, or count where none is left.
  uint64_t next() {
    const uint64_t i = next_.fetch_add(1);
    if (i >= count_) return count_;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step_ + offset_) % count_);
  }
  void stop() { next_ = count_; }

 private:
  uint64_t count_;
  uint64_t offset_ = 0;
  uint64_t step_ = 1;
  std::atomic<uint64_t> next_{0};
};

struct Fault {
  std::mutex mutex;
  uint64_t block = std::numeric_limits<uint64_t>::max();
  std::exception_ptr error;
};

void run_blocks(const Launch& launch, BlockOrder& order, uint64_t count, Fault& fault) {
  uint64_t index = 0;
  try {
    Block block(launch);
    while ((index = order.next()) < count) block.run(index);
  } catch (const std::exception&) {
    order.stop();
    const std::lock_guard<std::mutex> lock(fault.mutex);
    if (index > fault.block) return;
    fault.block = index;
    fault.error = std::current_exception();
  }
}

}  // namespace

// Blocks never run on the calling thread: its thread-local variables are not shared memory to be poisoned.
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body) {
  const Settings settings = current_settings();
  const Launch launch{kernel, grid, block, shared_bytes, settings.seed, body};
  check_launch(launch, settings);
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  BlockOrder order(count, settings.seed);
  Fault fault;
  std::vector<std::thread> workers;
  const uint64_t worker_count = std::min<uint64_t>(static_cast<uint64_t>(settings.threads), count);
  for (uint64_t i = 0; i < worker_count; ++i) {
    workers.emplace_back([&] { run_blocks(launch, order, count, fault); });
  }
  for (std::thread& worker : workers) worker.join();
  if (fault.error) std::rethrow_exception(fault.error);
}

}  // namespace fastmmoe::emulator
