// SPDX-License-Identifier: Apache-2.0
// The library's C functions.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <string>

#include "contract/exports.h"
#include "onnxruntime/glue.h"
#include "onnxruntime/ops.h"

namespace fastmmoe {
namespace {

// An entry of the session's configuration, given before the library: "1" for checks.
constexpr const char* kExactEntry = "fastmmoe.exact";

bool wants_exact(const OrtSessionOptions* options) {
  int has_entry = 0;
  Ort::ThrowOnError(Ort::GetApi().HasSessionConfigEntry(options, kExactEntry, &has_entry));
  if (has_entry == 0) return false;
  std::array<char, 8> value{};
  size_t size = value.size();
  Ort::ThrowOnError(Ort::GetApi().GetSessionConfigEntry(options, kExactEntry, value.data(), &size));
  const std::string text(value.data());
  CHECK(text == "0" || text == "1", kExactEntry, " is '", text, "', expected 0 or 1");
  return text == "1";
}

OrtCustomOpDomain* make_domain(bool is_exact) {
  OrtCustomOpDomain* domain = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCustomOpDomain("fastmmoe", &domain));
  for (const OrtCustomOp* op : library_ops(is_exact)) {
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
    // One domain for all sessions that are alike. It is never released, as sessions may outlive any moment
    // this library could choose.
    static OrtCustomOpDomain* const fast = fastmmoe::make_domain(false);
    static OrtCustomOpDomain* const exact = fastmmoe::make_domain(true);
    Ort::ThrowOnError(api->AddCustomOpDomain(options, fastmmoe::wants_exact(options) ? exact : fast));
  });
}
