// SPDX-License-Identifier: Apache-2.0
// The library's C functions.
#include <onnxruntime_cxx_api.h>

#include <string>

#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

#define FASTMMOE_EXPORT extern "C" __attribute__((visibility("default")))

namespace fastmmoe {
namespace {

OrtCustomOpDomain* make_domain() {
  OrtCustomOpDomain* domain = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCustomOpDomain("fastmmoe", &domain));
  for (const OrtCustomOp* op : {sparse_moe_op(), token_prune_op()}) {
    Ort::ThrowOnError(Ort::GetApi().CustomOpDomain_Add(domain, op));
  }
  return domain;
}

}  // namespace
}  // namespace fastmmoe

/// Adds the domain `fastmmoe` to the session options; ONNX Runtime calls it when it loads the library.
FASTMMOE_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                          const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(fastmmoe::kOrtApiVersion);
  if (api == nullptr) {
    const std::string message =
        std::string("fastmmoe operators need ONNX Runtime 1.21 or later, found ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  Ort::InitApi(api);
  return fastmmoe::guarded([&] {
    // One domain for all sessions. It is never released, as sessions may outlive any moment this library
    // could choose.
    static OrtCustomOpDomain* const domain = fastmmoe::make_domain();
    Ort::ThrowOnError(api->AddCustomOpDomain(options, domain));
  });
}

/// Version of fastmmoe this library was built from.
FASTMMOE_EXPORT const char* FmmVersion() { return FASTMMOE_VERSION; }

/// The operators' contract as JSON.
FASTMMOE_EXPORT const char* FmmContract() {
  static const std::string json = fastmmoe::contracts_as_json();
  return json.c_str();
}
