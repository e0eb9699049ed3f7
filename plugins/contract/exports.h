// SPDX-License-Identifier: Apache-2.0
// The C functions of every library of operators. One source file of a library includes this.
#pragma once

#include <string>

#include "contract/contract.h"

#define FASTMMOE_EXPORT extern "C" __attribute__((visibility("default")))

/// Version of fastmmoe this library was built from.
FASTMMOE_EXPORT const char* FmmVersion() { return FASTMMOE_VERSION; }

/// The operators' contract as JSON.
FASTMMOE_EXPORT const char* FmmContract() {
  static const std::string json = fastmmoe::contracts_as_json();
  return json.c_str();
}
