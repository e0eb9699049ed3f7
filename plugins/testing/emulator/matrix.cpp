// SPDX-License-Identifier: Apache-2.0
#include "testing/emulator/matrix.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "common/half.h"
#include "testing/emulator/block.h"

namespace fastmmoe::emulator {
namespace {

constexpr uint32_t kWholeWarp = 0xffffffff;
constexpr unsigned kRows = 16;
constexpr unsigned kColumns = 8;

std::string hex(const void* address) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  return text;
}

void check_shared(const Block& block, const SharedMemory& shared, const char* name, const void* address,
                  Site site) {
  const bool aligned = reinterpret_cast<uintptr_t>(address) % 16 == 0;
  if (aligned && shared.contains(address, 16)) return;
  block.fail(std::string(name) + " at " + to_string(site) + ": address " + hex(address) + " is " +
             (aligned ? "outside of shared memory" : "not a multiple of 16 bytes"));
}

template <unsigned kCount, bool kTranspose>
void combine_load(const WarpCall& call) {
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    uint32_t* fragment = static_cast<uint32_t*>(call.out[lane]);
    const unsigned group = lane / 4;
    const unsigned first = lane % 4 * 2;
    for (unsigned matrix = 0; matrix < kCount; ++matrix) {
      uint16_t pair[2];
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = kTranspose ? first + i : group;
        const unsigned column = kTranspose ? group : first + i;
        const auto* elements = static_cast<const uint16_t*>(call.in[matrix * 8 + row]);
        std::memcpy(&pair[i], elements + column, sizeof pair[i]);
      }
      fragment[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

template <unsigned kCount>
constexpr Collective kLoad[2] = {{"ldmatrix", true, combine_load<kCount, false>},
                                 {"ldmatrix.trans", true, combine_load<kCount, true>}};

struct MultiplyInput {
  const uint32_t* a;
  uint32_t b[2];
};

struct HalfElements {
  static constexpr const char* kName = "mma.m16n8k16.f16";
  using Value = float;
  static constexpr unsigned kPerRegister = 2;
  static float element(uint32_t bits, unsigned i) {
    return float_from_float16<float, uint32_t>(bits >> 16 * i & 0xffff);
  }
};
struct BfloatElements {
  static constexpr const char* kName = "mma.m16n8k16.bf16";
  using Value = float;
  static constexpr unsigned kPerRegister = 2;
  static float element(uint32_t bits, unsigned i) {
    return float_from_bfloat16<float, uint32_t>(bits >> 16 * i & 0xffff);
  }
};
struct ByteElements {
  static constexpr const char* kName = "mma.m16n8k32.s8";
  // Sums wrap around, as without .satfinite.
  using Value = uint32_t;
  static constexpr unsigned kPerRegister = 4;
  static uint32_t element(uint32_t bits, unsigned i) {
    return static_cast<uint32_t>(static_cast<int8_t>(bits >> 8 * i & 0xff));
  }
};

// A register of A holds elements of row group + 8 (i % 2) from column half (i / 2), one of B of column group
// from row half i, where a half is 4 registers of neighbouring lanes; one of D is [group + 8 (i / 2), pair].
template <typename Elements, typename Sum>
void combine_multiply(const WarpCall& call) {
  using Value = typename Elements::Value;
  constexpr unsigned kPer = Elements::kPerRegister;
  constexpr unsigned kDepth = 8 * kPer;
  Value a[kRows][kDepth];
  Value b[kDepth][kColumns];
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    const auto& input = call.input<MultiplyInput>(lane);
    const unsigned group = lane / 4;
    const unsigned first = lane % 4 * kPer;
    for (unsigned e = 0; e < kPer; ++e) {
      for (unsigned i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][first + i / 2 * 4 * kPer + e] = Elements::element(input.a[i], e);
      }
      for (unsigned i = 0; i < 2; ++i) b[first + i * 4 * kPer + e][group] = Elements::element(input.b[i], e);
    }
  }
  Value products[kRows][kColumns] = {};
  for (unsigned row = 0; row < kRows; ++row) {
    for (unsigned k = 0; k < kDepth; ++k) {
      for (unsigned column = 0; column < kColumns; ++column)
        products[row][column] += a[row][k] * b[k][column];
    }
  }
  for (unsigned lane = 0; lane < kWarpLanes; ++lane) {
    Sum* d = static_cast<Sum*>(call.out[lane]);
    for (unsigned i = 0; i < 4; ++i) {
      const Value product = products[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      d[i] = static_cast<Sum>(static_cast<Value>(d[i]) + product);
    }
  }
}

template <typename Elements, typename Sum>
constexpr Collective kMultiply{Elements::kName, true, combine_multiply<Elements, Sum>};

template <typename Elements, typename Sum>
void multiply(Sum* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  const MultiplyInput input{a, {b0, b1}};
  Block::current().collective(kMultiply<Elements, Sum>, kWholeWarp, &input, d, site);
}

}  // namespace

void copy_async(void* shared, const void* global, bool valid, Site site) {
  Block& block = Block::current();
  check_shared(block, block.shared(), "cp.async", shared, site);
  if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    block.fail("cp.async at " + to_string(site) + ": source " + hex(global) +
               " is not a multiple of 16 bytes");
  }
  block.async_copies().issue(shared, valid ? global : nullptr);
}

void copy_async_commit() { Block::current().async_copies().commit(); }

void copy_async_wait(size_t pending) { Block::current().async_copies().wait(pending); }

void load_matrix(uint32_t* fragment, unsigned count, bool transpose, const void* row, Site site) {
  Block& block = Block::current();
  if (block.lane() < 8 * count) {
    check_shared(block, block.shared(), transpose ? "ldmatrix.trans" : "ldmatrix", row, site);
  }
  const Collective* loads = count == 1 ? kLoad<1> : count == 2 ? kLoad<2> : kLoad<4>;
  block.collective(loads[transpose], kWholeWarp, row, fragment, site);
}

void multiply_f16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  multiply<HalfElements>(d, a, b0, b1, site);
}

void multiply_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  multiply<BfloatElements>(d, a, b0, b1, site);
}

void multiply_s8(int32_t* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  multiply<ByteElements>(d, a, b0, b1, site);
}

}  // namespace fastmmoe::emulator
