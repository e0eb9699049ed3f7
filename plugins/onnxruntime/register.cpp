// SPDX-License-Identifier: Apache-2.0
// The library's C functions.
#include <onnxruntime_cxx_api.h>

#include <string>

#include "contract/exports.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

OrtCustomOpDomain* make_domain() {
  OrtCustomOpDomain* domain = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCustomOpDomain("fastmmoe", &domain));
  for (const OrtCustomOp* op : library_ops()) {
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
  return fastmmoe::guarded("fastmmoe operators", [&] {
    // One domain for all sessions. It is never released, as sessions may outlive any moment this library
    // could choose.
    static OrtCustomOpDomain* const domain = fastmmoe::make_domain();
    Ort::ThrowOnError(api->AddCustomOpDomain(options, domain));
  });
}
